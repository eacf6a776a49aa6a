"""The quickstart's object on a real node: engines in restricted Pods share blocks through Redis, faults included.

These are the demo's own steps. Times are the demo's business (``make demo``), not this test's: CI machines are noisy,
and an answer of the store that is late on a busy machine is a miss by design, so hits need not be complete here.
"""

from __future__ import annotations

import json
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
def stage() -> Iterator[Cluster]:
    """The cluster, the operator, and the quickstart's pool, ready."""
    try:
        with Cluster(print) as cluster:
            yield cluster
    finally:
        install.remove()


@pytest.fixture(scope="module")
def steps(stage: Cluster) -> list[Step]:
    """All six, played once."""
    return Play(stage, print).run()


def test_a_managed_valkey(stage: Cluster) -> None:
    """Another server behind the same object: its Pod runs and lets the pool's user in."""
    pool = {
        "apiVersion": "kvpool.dev/v1alpha1",
        "kind": "KVCachePool",
        "metadata": {"name": "valkey", "namespace": install.NAMESPACE},
        "spec": {"backend": {"type": "Valkey", "memory": "256Mi"}},
    }
    where = ("valkey", "-n", install.NAMESPACE)
    stage.kubectl("apply", "-f", "-", stdin=json.dumps(pool))
    stage.kubectl("wait", "kvcachepool", *where, "--for=condition=BackendAvailable", "--timeout=60s", timeout_s=70)
    call = ("exec", "-n", install.NAMESPACE, "deployment/valkey-store", "--", "valkey-cli", "--user", "kvpool")
    assert stage.kubectl(*call, "ping").strip() == "PONG"
    assert "valkey_version" in stage.kubectl(*call, "info", "server")
    stage.kubectl("delete", "kvcachepool", *where, "--wait=true")


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
