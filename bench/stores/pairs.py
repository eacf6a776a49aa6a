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
    seconds: dict[str, tuple[list[float], list[float]]] = {pair.name: ([], []) for pair in pairs}
    for number in range(max(pair.rounds for pair in pairs) + 1):
        for pair in pairs:
            if number > pair.rounds:
                continue
            ways = (pair.ours, pair.theirs)
            for way in (0, 1) if number % 2 else (1, 0):  # neither is always the first
                started = time.perf_counter()
                ways[way]()
                if number:
                    seconds[pair.name][way].append(time.perf_counter() - started)
    return [_row(pair, *seconds[pair.name]) for pair in pairs]


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
