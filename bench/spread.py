"""Medians with their spread, for tables and for JSON."""

from __future__ import annotations

import statistics


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median and third quartile, of at least two values."""
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def spread(values: list[float]) -> str:
    """The median, and the quartiles in brackets."""
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.2f} ({low:.2f}-{high:.2f})"
