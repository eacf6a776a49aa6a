"""The quickstart's object on a real node: engines in restricted Pods share blocks through Redis, faults included.

These are the demo's own steps. Times are the demo's business (``make demo``), not this test's: CI machines are noisy,
and an answer of the store that is late on a busy machine is a miss by design, so hits need not be complete here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from e2e.demo import install
from e2e.demo.cluster import Cluster
from e2e.demo.report import FULL_HIT_STEPS
from e2e.demo.steps import Play, Step, texts_identical

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
]


@pytest.fixture(scope="module")
def steps() -> Iterator[list[Step]]:
    """All six, played once."""
    try:
        with Cluster(print) as stage:
            yield Play(stage, print).run()
    finally:
        install.remove()


def test_every_step_gives_the_same_text(steps: list[Step]) -> None:
    """Computed, from memory, from Redis, with Redis lost: greedy text is the same."""
    assert len(steps) == 6
    assert texts_identical(steps)


def test_blocks_are_shared(steps: list[Step]) -> None:
    """The memory tier, the other engine, the new Pod and the returned store serve the prompt; the cold step was cold."""
    hits = {step.key: step.hit_fraction for step in steps}
    assert hits["cold_s"] < 0.01
    assert {key: hits[key] for key in FULL_HIT_STEPS if hits[key] < 0.75} == {}


def test_a_hit_is_faster_than_computing(steps: list[Step]) -> None:
    """By far: the demo sees 1/20 and less."""
    seconds = {step.key: step.seconds for step in steps}
    assert seconds["cpu_tier_s"] < seconds["cold_s"] / 4
    assert seconds["other_engine_s"] < seconds["cold_s"] / 2
