"""Two ways to move the same bytes, timed in turn, and the ratio of each round."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.spread import quartiles


@dataclasses.dataclass(frozen=True)
class Pair:
    """One row of the table."""

    figure: str
    """Key of the figure that this row counts for: the figure is its worst row."""
    name: str
    nbytes: int
    """Moved by one call of either."""
    ours: Callable[[], object]
    theirs: Callable[[], object]
    rounds: int = 15
    server: int = 0
    """The process whose main thread serves ours; 0: not looked at. At 1.0 it never waited: no client could have been faster."""


def measure(pairs: Sequence[Pair]) -> list[dict[str, object]]:
    """Rows for `report`: GB/s of both and the quartiles of ours over theirs. One round of warm-up is thrown away."""
    return [_row(pair) for pair in pairs]


def _row(pair: Pair) -> dict[str, object]:
    """Pair by pair, so that a call finds the processor's caches as its rival left them, and not as all others did."""
    seconds: tuple[list[float], list[float]] = ([], [])
    busy: list[float] = []
    ways = (pair.ours, pair.theirs)
    for number in range(pair.rounds + 1):
        for way in (0, 1) if number % 2 else (1, 0):  # neither is always the first
            started, worked = time.perf_counter(), _worked(pair.server)
            ways[way]()
            if number:
                seconds[way].append(time.perf_counter() - started)
                if way == 0:
                    busy.append((_worked(pair.server) - worked) / seconds[0][-1])
    ours, theirs = seconds
    return {
        "figure": pair.figure,
        "name": pair.name,
        "ours": round(pair.nbytes / statistics.median(ours) / 1e9, 3),
        "theirs": round(pair.nbytes / statistics.median(theirs) / 1e9, 3),
        "quartiles": quartiles([b / a for a, b in zip(ours, theirs, strict=True)]),
        "n": len(ours),
        "server_busy": round(statistics.median(busy), 2) if pair.server else None,
    }


def _worked(process: int) -> float:
    """Seconds that a process's main thread was on a processor. Source: sched-stats.rst of Linux, ``/proc/<pid>/schedstat``."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9 if process else 0.0


def tell(pairs: Sequence[Pair]) -> None:
    """Measure, and print the rows as one line of JSON for the parent process."""
    print(json.dumps(measure(pairs)))
