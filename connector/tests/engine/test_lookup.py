"""The shortcut of a lookup says what the pool says. No engine runs here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext

from bench.engine.lookup import long_prompt, waiting_requests
from connector.tests.unit.pools import KEYS, Rig, closing
from kvpool_connector.transfer import Reports
from kvpool_connector.vllm.adapters import Adapters
from kvpool_connector.vllm.lookup import PoolLookup

A, B, C = (OffloadKey(key) for key in KEYS[:3])
REQUEST, OTHER = ReqContext("r"), ReqContext("other")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """All tiers."""
    with closing(Rig(tmp_path, remote=True, slots=2)) as it:
        yield it


def test_hits_and_misses(rig: Rig) -> None:
    """In memory, below it, and nowhere."""
    look_up = PoolLookup(rig.pool, Adapters()).lookup
    rig.stored(A)
    assert [look_up(key, REQUEST) for key in (A, B)] == [LookupResult.HIT, LookupResult.RETRY]
    rig.settle()
    assert look_up(B, REQUEST) is LookupResult.MISS
    rig.only_below(C)
    assert look_up(C, OTHER) is LookupResult.HIT


def test_a_hit_of_the_shortcut_is_promised(rig: Rig) -> None:
    """A hit of a lower tier in the same step takes another slot."""
    look_up = PoolLookup(rig.pool, Adapters()).lookup
    rig.only_below(C)
    rig.stored(A)
    rig.stored(B)
    rig.settle()
    assert [look_up(key, REQUEST) for key in (A, B, C)] == [LookupResult.HIT, LookupResult.HIT, LookupResult.MISS]
    rig.step()
    assert look_up(C, OTHER) is LookupResult.HIT


def test_what_is_special_is_left_to_the_pool(rig: Rig) -> None:
    """A request that waits, and a pool that is closed down: a block in memory is no hit then."""
    look_up = PoolLookup(rig.pool, Adapters()).lookup
    rig.stored(A)
    rig.presence.hung = True
    assert look_up(B, REQUEST) is LookupResult.RETRY
    rig.step()
    assert [look_up(A, context) for context in (REQUEST, OTHER)] == [LookupResult.RETRY, LookupResult.HIT]
    rig.pool.on_reports(Reports(broken="no memory"))
    assert look_up(A, OTHER) is LookupResult.MISS


def test_a_condemned_block_is_no_hit(rig: Rig) -> None:
    """At once, while a load still reads it."""
    look_up = PoolLookup(rig.pool, Adapters()).lookup
    rig.stored(A)
    load = rig.load(A)
    rig.pool.on_reports(Reports(failed={load.ticket: {0}}))
    assert look_up(A, OTHER) is LookupResult.MISS
    rig.pool.end_load("r")


def test_the_shortcut_survives_a_reset(rig: Rig) -> None:
    """It holds on to parts of the pool that stay the same."""
    look_up = PoolLookup(rig.pool, Adapters()).lookup
    rig.stored(A)
    rig.pool.reset()
    rig.step()
    rig.stored(B)
    assert look_up(B, REQUEST) is LookupResult.HIT
    assert look_up(A, REQUEST) is not LookupResult.HIT


def test_the_benchmark_of_the_scheduler_runs() -> None:
    """It builds a manager without an engine, and so has to keep up with its constructor."""
    assert {len(times) for times in long_prompt(64, 2).values()} == {2}
    assert len(waiting_requests(3, 2)) == 2
