"""What a timed read of a lower tier says about the tier's speed."""

from __future__ import annotations

from collections.abc import Sequence

from kvpool_connector.stores import Outcome
from kvpool_connector.transfer import Sample, Tier

MOST_WAITED = 0.1
"""A read that waited longer than this share of its time behind other reads, and was then given up, was cut by our own queue."""


def sample_of(
    tier: Tier,
    sizes: Sequence[int],
    outcomes: Sequence[Outcome],
    seconds: float,
    *,
    waited_s: float = 0.0,
    budget_s: float = 0.0,
) -> Sample | None:
    """Return what a read says about the speed of its tier; None if nothing.

    A read that came to its end shows how fast the tier is. One that was given up although it had all
    its time shows that the tier needs longer than that for all that was asked for. A store that fell
    silent says nothing: how fast it is when it answers, nobody knows.

    Args:
        sizes: bytes of the parts that were asked for, in the order of their outcomes.
        seconds: from the beginning of the read, without the time that it waited before.
        waited_s: how much of its budget was gone when the read began.
        budget_s: how long waiting and reading together were given.
    """
    if Outcome.STALLED in outcomes:
        return None
    if Outcome.TIMEOUT in outcomes:
        if waited_s > MOST_WAITED * budget_s:
            return None
        return Sample(tier, sum(sizes), seconds, at_most=True)
    arrived = sum(size for size, outcome in zip(sizes, outcomes, strict=True) if outcome is Outcome.HIT)
    return Sample(tier, arrived, seconds) if arrived else None
