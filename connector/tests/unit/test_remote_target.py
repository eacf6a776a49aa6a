"""Rows that the store is thought to hold, and may have dropped: told that they are used, and written again if they are gone."""

from __future__ import annotations

import pytest

from connector.tests.unit.pools import HIT, KEYS, Make, Rig
from kvpool_connector.scheduler.secondary import remote
from kvpool_connector.scheduler.secondary.remote import REFRESH_AFTER_S, REFRESH_BATCH
from kvpool_connector.transfer import Tier

A, B = KEYS[:2]


def written(it: Rig) -> list[bytes]:
    """What is written in the next steps, as if memory needed its slots."""
    keys: list[bytes] = []
    for _ in range(3):
        for slot in it.index.coldest(8):
            it.pool.spills._queue_dirty(slot)
        for spill in it.step().spills:
            it.report(spill)
            keys += spill.keys
    return keys


@pytest.fixture(params=["write_through", "write_back", "selective"])
def held(request: pytest.FixtureRequest, rig: Make) -> Rig:
    """A and B are in memory, and in the store. Half a minute passed."""
    it = rig(remote=True, remote_policy=request.param, slots=8)
    it.stored(A, B)
    it.stored(A, B)
    assert sorted(written(it)) == [A, B]
    it.presence.remote |= {A, B}
    it.clock.now += REFRESH_AFTER_S
    return it


def used(it: Rig, key: bytes) -> list[bytes]:
    """It is computed by the device's own cache and offered once more. Returns what is written again."""
    it.stored(key, req_id=f"w{it.clock.now}")
    return written(it)


def test_a_hot_block_that_the_store_dropped_is_written_again(held: Rig) -> None:
    """It is used all the time, in an engine's memory, and so is the oldest in a store that evicts by use."""
    held.presence.remote.remove(A)
    assert used(held, A) == [A]
    assert held.pool.spills.counts["remote lost, to be written again"] == 1
    held.presence.remote.add(A)
    held.clock.now += REFRESH_AFTER_S
    assert used(held, A) == []
    assert held.pool.lookup(A, "r") is HIT


def test_what_is_used_is_refreshed_now_and_then(held: Rig) -> None:
    """Not what is only there, and not again before its time."""
    for _ in range(2):
        held.stored(A, req_id="w")
        held.step()
        assert held.presence.refreshing == [A]
        held.step()
        held.stored(A, req_id="w")
        held.step()
        assert held.presence.refreshing == []
        held.clock.now += REFRESH_AFTER_S


def test_what_was_just_read_from_the_store_is_not_refreshed(rig: Make) -> None:
    """Reading is using."""
    it = rig(remote=True)
    it.clock.now += 10 * REFRESH_AFTER_S
    it.presence.remote.add(A)
    it.loaded(A)
    it.step()
    assert it.presence.refreshing == []


def test_a_slot_with_another_owner_by_then(held: Rig) -> None:
    """The answer is about the key, whose row is gone."""
    held.presence.remote.clear()
    held.stored(A, req_id="w")
    held.step()
    slot = held.index.find(A)
    assert slot is not None
    held.index.drop(slot)
    held.pool.end_step()
    assert held.pool.take_orders().spills == ()
    assert held.pool.spills.counts["remote lost, to be written again"] == 0


def test_a_store_that_is_away_is_not_told(held: Rig) -> None:
    held.presence.reachable = False
    held.stored(A, req_id="w")
    held.step()
    assert held.presence.refreshing == []


def test_a_closed_pool_writes_nothing(held: Rig) -> None:
    """Nothing that it holds can be trusted."""
    held.presence.remote.remove(A)
    held.stored(A, req_id="w")
    held.step()
    held.pool.close_down("a test", "End it")
    assert held.settle() == []


def test_a_step_refreshes_few(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what waits is bounded: it is used again, or it is not hot."""
    monkeypatch.setattr(remote, "MOST_TO_REFRESH", 150)
    keys = [b"%07d" % n + bytes(1) for n in range(200)]
    it = rig(remote=True, slots=256)
    it.stored(*keys)
    it.settle()
    it.presence.remote |= set(keys)
    it.clock.now += REFRESH_AFTER_S
    it.stored(*keys, req_id="again")
    refreshed: list[list[bytes]] = []
    for _ in range(5):
        it.step()
        refreshed.append(it.presence.refreshing)
    assert refreshed == [
        keys[:REFRESH_BATCH],
        keys[REFRESH_BATCH : 2 * REFRESH_BATCH],
        keys[2 * REFRESH_BATCH : 150],
        [],
        [],
    ]


def test_a_load_from_the_store_notes_it_in_its_present_life(rig: Make) -> None:
    """A store that came back since is offered the row once more."""
    it = rig(remote=True)
    it.presence.remote.add(A)
    it.load(A)
    it.presence.come_back()
    it.pool.end_load("r")
    assert [spill.tier for spill in it.settle()] == [Tier.REMOTE]
