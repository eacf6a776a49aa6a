"""What a timed read says about the speed of its tier."""

from __future__ import annotations

import pytest

from kvpool_connector.stores import Outcome
from kvpool_connector.transfer import Sample, Tier
from kvpool_connector.worker.sampling import MOST_WAITED, sample_of

HIT, MISS, TIMEOUT, STALLED = Outcome.HIT, Outcome.MISS, Outcome.TIMEOUT, Outcome.STALLED


@pytest.mark.parametrize(
    ("outcomes", "waited_s", "sample"),
    [
        ([HIT, HIT], 0.0, Sample(Tier.REMOTE, 30, 0.5)),
        ([HIT, HIT], 0.9, Sample(Tier.REMOTE, 30, 0.5)),
        ([MISS, HIT], 0.0, Sample(Tier.REMOTE, 20, 0.5)),
        ([HIT, TIMEOUT], 0.0, Sample(Tier.REMOTE, 30, 0.5, at_most=True)),
        ([TIMEOUT, TIMEOUT], 0.0, Sample(Tier.REMOTE, 30, 0.5, at_most=True)),
        ([HIT, TIMEOUT], MOST_WAITED + 0.01, None),
        ([TIMEOUT, TIMEOUT], 0.99, None),
        ([HIT, STALLED], 0.0, None),
        ([MISS, MISS], 0.0, None),
    ],
)
def test_sample(outcomes: list[Outcome], waited_s: float, sample: Sample | None) -> None:
    """A read that our own queue cut says nothing; one that had its time and did not end bounds the speed."""
    assert sample_of(Tier.REMOTE, [10, 20], outcomes, 0.5, waited_s=waited_s, budget_s=1.0) == sample
