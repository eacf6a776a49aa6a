"""Two ways to move the same bytes, timed in turn, and the ratio of each round."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence

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


def measure(pairs: Sequence[Pair]) -> list[dict[str, object]]:
    """Rows for `report`: GB/s of both and the quartiles of ours over theirs. One round of warm-up is thrown away."""
    return [_row(pair, *_seconds(pair)) for pair in pairs]


def _seconds(pair: Pair) -> tuple[list[float], list[float]]:
    """Pair by pair, so that a call finds the processor's caches as its rival left them, and not as all others did."""
    seconds: tuple[list[float], list[float]] = ([], [])
    ways = (pair.ours, pair.theirs)
    for number in range(pair.rounds + 1):
        for way in (0, 1) if number % 2 else (1, 0):  # neither is always the first
            started = time.perf_counter()
            ways[way]()
            if number:
                seconds[way].append(time.perf_counter() - started)
    return seconds


def _row(pair: Pair, ours: list[float], theirs: list[float]) -> dict[str, object]:
    return {
        "figure": pair.figure,
        "name": pair.name,
        "ours": round(pair.nbytes / statistics.median(ours) / 1e9, 3),
        "theirs": round(pair.nbytes / statistics.median(theirs) / 1e9, 3),
        "quartiles": quartiles([b / a for a, b in zip(ours, theirs, strict=True)]),
        "n": len(ours),
    }


def tell(pairs: Sequence[Pair]) -> None:
    """Measure, and print the rows as one line of JSON for the parent process."""
    print(json.dumps(measure(pairs)))
