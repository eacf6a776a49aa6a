"""Requests that may load from some tiers only (vLLM's ``kv_load_tiers``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from connector.tests.unit.pools import HIT, KEYS, MISS, PENDING, RETRY, Make, Rig
from kvpool_connector.transfer import Tier

A = KEYS[0]


@pytest.fixture(params=list(Tier))
def where(request: pytest.FixtureRequest, rig: Make, tmp_path: Path) -> tuple[Rig, Tier]:
    """A is in this tier and in no other one."""
    tier = request.param
    it = rig(tmp_path, remote=tier is not Tier.DISK)  # else what is written to one is written to both
    if tier is Tier.MEMORY:
        it.stored(A)
    elif tier is Tier.DISK:
        it.only_below(A)
    else:
        it.presence.remote.add(A)
    return it, tier


@pytest.mark.parametrize("named", list(Tier))
def test_a_tier_that_is_not_named_is_not_loaded_from(where: tuple[Rig, Tier], named: Tier) -> None:
    """Other requests are not concerned, before and after."""
    it, tier = where
    assert it.lookup(A, "free") is HIT
    it.step()
    it.pool.lookups.restrict("r", frozenset({named}))
    assert it.lookup(A) is (HIT if named is tier else MISS)
    it.step()
    assert it.lookup(A, "free") is HIT
    it.step()
    assert it.lookup(A) is (HIT if named is tier else MISS), "still so in another step"
    it.pool.forget_request("r")
    it.step()
    assert it.lookup(A) is HIT


def test_no_tier_at_all(where: tuple[Rig, Tier]) -> None:
    """Not even a question goes to the store."""
    it, _ = where
    it.pool.lookups.restrict("r", frozenset())
    assert it.pool.lookup(A, "r") is MISS


def test_what_another_request_was_promised_from_a_tier_that_is_not_named(rig: Make) -> None:
    """The two would share the row, and who begins first reads the store. Once it is in memory, it is memory's."""
    it = rig(remote=True)
    it.presence.remote.add(A)
    it.pool.lookups.restrict("r", frozenset({Tier.MEMORY}))
    assert it.pool.lookup(A, "free") is RETRY
    it.pool.end_step()
    assert it.pool.lookup(A, "free") is HIT
    assert it.pool.lookup(A, "r") is MISS
    it.pool.begin_load([A], "free")
    it.pool.end_step()
    assert it.pool.lookup(A, "r") is PENDING
    it.pool.end_load("free")
    it.pool.end_step()
    assert it.pool.lookup(A, "r") is HIT
