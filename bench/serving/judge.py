"""Figures, goals and verdicts; the table and the line of JSON. Pure."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Times = Sequence[tuple[str, float]]
"""Name of a prompt and seconds."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a figure has to reach."""

    title: str
    limit: float
    at_least: bool = False


GOALS = {
    "cold_ratio": Goal("cold with the connector / without", 1.02),
    "warm_memory_ratio": Goal("warm from memory / cold", 1 / 20),
    "warm_disk_ratio": Goal("warm from disk, restarted / cold", 1 / 12),
    "remote_ratio": Goal("first hit of a fresh engine, Redis / cold", 1 / 15),
    "vs_lmcache_mp": Goal("warm / LMCache MP's warm", 0.25),
    "itl_median_ratio": Goal("between tokens, busy / quiet, median", 1.05),
    "itl_p99_ratio": Goal("between tokens, busy / quiet, p99", 1.10),
    "copy_share": Goal("device copy / memcpy, one thread", 0.8, at_least=True),
    "index_bytes_per_chunk": Goal("index, bytes per cached chunk", 200),
    "lookup_8000_ms": Goal("scheduler, 8000 keys over a life, ms", 5),
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured value with its spread."""

    median: float
    quartiles: tuple[float, float, float]
    n: int

    @classmethod
    def of(cls, values: Sequence[float], median: float | None = None) -> Figure:
        """Args:
        median: of what the values summarise, if it is better known than by their own median.
        """
        found = quartiles(values)
        return cls(found[1] if median is None else median, found, len(values))

    @property
    def noise(self) -> float:
        """Standard error of the median, nearly: 0.93 of the quartiles' distance over the root of n, for a normal spread."""
        return 0.93 * (self.quartiles[2] - self.quartiles[0]) / math.sqrt(self.n)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def paired(above: Times, below: Times) -> Figure | None:
    """Quotients prompt by prompt, of the prompts that both have; None if there is none."""
    of_prompt = dict(below)
    values = [seconds / of_prompt[prompt] for prompt, seconds in above if prompt in of_prompt]
    return Figure.of(values) if values else None


def paired_by_start(above: Times, below: Times) -> Figure | None:
    """The same, but one value per start of the engines, the median over its prompts: how fast a process is differs from start to
    start by some percent, which more prompts do not average out. A prompt's name begins with its start, up to a colon."""
    of_start: dict[str, list[float]] = {}
    of_prompt = dict(below)
    for prompt, seconds in above:
        if prompt in of_prompt:
            of_start.setdefault(prompt.partition(":")[0], []).append(seconds / of_prompt[prompt])
    return Figure.of([statistics.median(values) for values in of_start.values()]) if of_start else None


def from_json(content: Mapping[str, Any]) -> Figure:
    """A figure that another benchmark printed: ``quartiles`` and ``n``."""
    low, median, high = content["quartiles"]
    return Figure(median, (low, median, high), content["n"])


def verdict(goal: Goal, figure: Figure) -> str:
    """``OK``, ``MISSED``, or ``NOISE``: not reached, by less than the median's own uncertainty."""
    missing = (goal.limit - figure.median) if goal.at_least else (figure.median - goal.limit)
    if missing <= 0:
        return "OK"
    return "NOISE" if missing <= figure.noise else "MISSED"


def table(figures: Mapping[str, Figure]) -> str:
    """Figures with a goal and their verdicts; fits 100 columns."""
    rows = [f"{'':42} {'n':>3} {'median':>9} {'quartiles':>19} {'goal':>9}"]
    for key, goal in GOALS.items():
        if key not in figures:
            rows.append(f"{goal.title:42} not measured")
            continue
        figure = figures[key]
        shown = f"{_short(figure.quartiles[0])} - {_short(figure.quartiles[2])}"
        sign = ">=" if goal.at_least else "<="
        rows.append(
            f"{goal.title:42} {figure.n:3} {_short(figure.median):>9} {shown:>19} {sign + ' ' + _short(goal.limit):>9}  "
            f"{verdict(goal, figure)}"
        )
    return "\n".join(rows)


def plain_table(figures: Mapping[str, Figure]) -> str:
    """Figures without a goal; fits 100 columns."""
    return "\n".join(
        f"{key:42} {figure.n:3} {_short(figure.median):>9} "
        f"{_short(figure.quartiles[0]) + ' - ' + _short(figure.quartiles[2]):>19}"
        for key, figure in figures.items()
    )


def seconds_table(seconds: Mapping[str, Times]) -> str:
    """What was waited for; fits 100 columns."""
    rows = [f"{'first token':32} {'n':>3} {'median':>9} {'quartiles':>19}"]
    for key, times in seconds.items():
        if not times:
            continue  # that part of the run was left out
        figure = Figure.of([value for _, value in times])
        rows.append(
            f"{key:32} {figure.n:3} {figure.median:7.3f} s {figure.quartiles[0]:8.3f} - {figure.quartiles[2]:.3f} s"
        )
    return "\n".join(rows)


def as_json(figure: Figure) -> dict[str, object]:
    """For machines."""
    return {"median": round(figure.median, 4), "quartiles": [round(q, 4) for q in figure.quartiles], "n": figure.n}


def missed(figures: Mapping[str, Figure]) -> list[str]:
    """Goals that were not reached beyond the noise, or not measured."""
    return [key for key, goal in GOALS.items() if key not in figures or verdict(goal, figures[key]) == "MISSED"]


def _short(value: float) -> str:
    return f"{value:.4f}" if value < 0.2 else f"{value:.3f}" if value < 10 else f"{value:.0f}"
