"""The scheduler's decisions about memory and the remote store, one at a time. test_pool_machine.py mixes them."""

from __future__ import annotations

from collections import Counter

import pytest

from connector.tests.unit.pools import HIT, KEYS, MISS, PENDING, RETRY, Make
from kvpool_connector.scheduler.lookups import MAX_FAILED_LOADS
from kvpool_connector.tiers.slots import State
from kvpool_connector.transfer import STORE_SILENT, Kind, Reports, Tier

A, B, C, D, E, F = KEYS[:6]
MEMORY = Tier.MEMORY


# ---- memory ------------------------------------------------------------------------------------------------------


def test_unknown_keys_are_misses_without_lower_tiers(rig: Make) -> None:
    """Nothing to ask."""
    assert rig().pool.lookup(A, "r") is MISS


def test_a_stored_block_is_a_hit_from_its_end_on(rig: Make) -> None:
    """A pending store is a miss: waiting for it may take longer than computing."""
    it = rig()
    transfer = it.pool.begin_store([A, B], "w")
    assert (transfer.kind, transfer.keys, transfer.compared) == (Kind.STORE, (A, B), frozenset())
    assert len(set(transfer.slots)) == 2
    assert it.pool.lookup(A, "r") is MISS
    it.pool.end_store(transfer.keys)
    assert it.pool.lookup(A, "r") is HIT
    assert it.pool.tier_of(A) is MEMORY
    assert (it.pool.busy, it.references) == (False, 0)


def test_a_load_from_memory_reads_the_slots_of_the_store(rig: Make) -> None:
    """Without a fetch; pinned until its end."""
    it = rig(remote=True)
    stored = it.stored(A, B, C)
    it.settle()
    load = it.load(A, B, C)
    assert (load.kind, load.slots, load.req_id) == (Kind.LOAD, stored.slots, "r")
    assert (load.from_disk, load.from_remote, load.fetch_s) == ((), (), 0.0)
    assert it.references == 3
    it.pool.end_load("r")
    assert it.references == 0


def test_a_block_that_is_read_is_not_evicted(rig: Make) -> None:
    """Its slot is free for others when the load ended."""
    it = rig(slots=1)
    it.stored(A)
    it.load(A)
    assert it.pool.begin_store([B], "w").keys == ()
    it.pool.end_load("r")
    assert it.stored(B).keys == (B,)


def test_a_promised_block_is_not_evicted_for_another_hit_of_the_step(rig: Make) -> None:
    """A load that follows cannot be refused."""
    it = rig(slots=1, remote=True)
    it.stored(A)
    it.settle()
    it.presence.remote.add(B)
    assert it.pool.lookup(B, "r") is RETRY
    it.step()
    assert [it.pool.lookup(key, "r") for key in (A, B)] == [HIT, MISS]
    it.step()
    assert [it.pool.lookup(key, "other") for key in (B, A)] == [HIT, MISS]


def test_a_chain_is_stored_from_its_head_as_far_as_there_is_room(rig: Make) -> None:
    """A tail without its head can never be hit."""
    it = rig(slots=3)
    assert it.pool.begin_store(KEYS[:5], "w").keys == (A, B, C)
    assert it.pool.counts["no slot for a store"] == 1


def test_the_tail_of_a_chain_is_evicted_first(rig: Make) -> None:
    """The event says what went."""
    it = rig(slots=3)
    it.stored(A, B, C)
    it.changes()
    it.stored(D)
    assert it.changes() == [(MEMORY, "removed", (C,)), (MEMORY, "stored", (D,))]


def test_a_chain_is_not_evicted_for_its_own_tail(rig: Make) -> None:
    """Its resident head counts as used before room is made."""
    it = rig(slots=3)
    it.stored(A, B, C, req_id="w0")
    it.stored(D, req_id="w1")
    it.changes()
    it.stored(A, B, E, req_id="w2")
    assert it.changes()[0] == (MEMORY, "removed", (D,))


def test_a_chain_that_is_offered_in_pieces_is_one_chain(rig: Make) -> None:
    """A later piece lies behind the earlier ones, and goes before them."""
    it = rig(slots=4)
    it.stored(A, B, req_id="w")
    it.stored(C, D, req_id="w")
    it.changes()
    it.stored(E, req_id="w1")
    it.stored(F, req_id="w2")
    assert [change for change in it.changes() if change[1] == "removed"] == [
        (MEMORY, "removed", (D,)), (MEMORY, "removed", (C,))
    ]  # fmt: skip


def test_an_empty_store_leaves_nothing_behind(rig: Make) -> None:
    """vLLM throws it away and never completes it."""
    it = rig()
    it.stored(A, B)
    assert it.pool.begin_store([A, B], "w").keys == ()
    assert (it.pool.jobs._running, it.references, it.pool.busy) == ({}, 0, False)


@pytest.mark.parametrize("failing_first", [True, False])
def test_a_block_that_one_of_two_loads_found_bad(rig: Make, failing_first: bool) -> None:
    """It stays until both have ended, in any order, then it goes."""
    it = rig()
    it.stored(A)
    loads = [it.load(A, req_id=req_id) for req_id in ("r0", "r1")]
    it.pool.on_reports(Reports(failed={loads[0].ticket: {0}}))
    it.pool.end_load("r0" if failing_first else "r1")
    assert (it.references, A in it.index) == (1, True)
    it.pool.end_load("r1" if failing_first else "r0")
    assert (it.index.free, A in it.index) == (4, False)


# ---- the remote store --------------------------------------------------------------------------------------------


def test_the_store_is_asked_once_per_step(rig: Make) -> None:
    """RETRY until it answered, then HIT or MISS."""
    it = rig(remote=True)
    it.presence.remote.add(A)
    assert [it.pool.lookup(key, "r") for key in (A, B)] == [RETRY] * 2
    it.step()
    assert [it.pool.lookup(key, "r") for key in (A, B)] == [HIT, MISS]
    assert [it.pool.tier_of(key) for key in (A, B)] == [Tier.REMOTE, MEMORY]
    assert it.presence.asked == [A, B]


def test_a_load_from_the_store_fills_a_slot_that_then_serves_memory(rig: Make) -> None:
    """PENDING for others while it runs; an event when it is there."""
    it = rig(remote=True)
    it.stored(B)
    it.presence.remote.add(A)
    it.changes()
    load = it.load(B, A)
    assert (load.from_remote, load.from_disk, load.fetch_s) == ((1,), (), 5.0)
    assert it.pool.lookup(A, "other") is PENDING
    assert it.changes() == []
    it.pool.end_load("r")
    assert it.changes() == [(MEMORY, "stored", (A,))]
    it.step()
    assert it.load(A, req_id="other").from_remote == ()


def test_a_promise_that_no_load_takes_up_lapses(rig: Make) -> None:
    """The slot is free for others in the next step. Also where the request was aborted."""
    it = rig(slots=1, remote=True)
    it.presence.remote |= set(KEYS)
    assert [it.pool.lookup(key, "r") for key in (A, B)] == [RETRY] * 2
    it.step()
    assert [it.pool.lookup(key, "r") for key in (A, B)] == [HIT, MISS]  # one slot
    it.pool.forget_request("r")
    assert it.index.free == 0
    it.step()
    assert (it.index.free, it.pool.lookups.reserved) == (1, {})


def test_an_unreachable_store_is_a_miss_at_once(rig: Make) -> None:
    """And nothing is written to it."""
    it = rig(remote=True)
    it.presence.lose()
    assert it.pool.lookup(A, "r") is MISS
    it.stored(A)
    assert it.settle() == []
    assert it.pool.store_reachable is False
    assert rig().pool.store_reachable is None


# ---- failures ----------------------------------------------------------------------------------------------------


def test_a_failed_load_forgets_what_failed_only(rig: Make) -> None:
    """A row of memory that was damaged says nothing about what the store has."""
    it = rig(remote=True)
    it.stored(A, B, C)
    it.settle()
    it.changes()
    load = it.load(A, B, C)
    it.pool.on_reports(Reports(failed={load.ticket: {1}}))
    assert it.pool.lookup(B, "other") is MISS  # bad, while the load still holds it
    it.pool.end_load("r")
    assert [key in it.index for key in (A, B, C)] == [True, False, True]
    assert it.changes() == [(MEMORY, "removed", (B,))]
    it.presence.remote.add(B)
    assert it.pool.lookup(B, "other") is HIT
    assert it.pool.tier_of(B) is Tier.REMOTE


@pytest.mark.parametrize("late", [False, True])
def test_what_the_store_did_not_deliver_is_not_believed_to_be_there(rig: Make, late: bool) -> None:
    it = rig(remote=True)
    it.presence.remote |= {A, B}
    load = it.load(A, B)
    it.pool.on_reports(Reports(failed={load.ticket: {1}}, lost={} if late else {load.ticket: {1}}))
    it.pool.end_load("r")
    assert [it.pool.lookup(key, "other") for key in (A, B)] == [HIT, MISS]


def test_a_store_that_was_silent_is_not_asked_again_before_it_answers(rig: Make) -> None:
    """Neither for what could not be loaded nor for what it was believed to have: all of it is
    computed at once."""
    it = rig(remote=True)
    it.presence.remote |= {A, B, C}
    assert [it.lookup(key, "other") for key in (B, C)] == [HIT, HIT]
    it.step()
    load = it.load(A)
    it.pool.on_reports(Reports(failed={load.ticket: {0}}, counts=Counter({STORE_SILENT: 1})))
    it.pool.end_load("r")
    assert [it.pool.lookup(key, "r") for key in (A, B, C, D)] == [MISS] * 4
    assert D not in it.presence.asked
    assert it.pool.store_reachable is False
    it.presence.come_back()
    it.presence.expire()
    assert it.lookup(B, "r") is HIT


def test_a_failed_fetch_was_never_in_memory(rig: Make) -> None:
    """No event says so, and its slot is free."""
    it = rig(remote=True)
    it.presence.remote |= {A, B}
    it.loaded(A, B, failed={0})
    assert it.changes() == [(MEMORY, "stored", (B,))]
    assert (it.index.free, it.references) == (3, 0)


def test_a_failed_store_was_never_there(rig: Make) -> None:
    """It is not written down either."""
    it = rig(remote=True)
    transfer = it.pool.begin_store([A, B], "w")
    it.pool.on_reports(Reports(failed={transfer.ticket: {0}}))
    it.pool.end_store(transfer.keys)
    assert it.changes() == [(MEMORY, "stored", (B,))]
    assert [spill.keys for spill in it.settle()] == [(B,)]
    assert A not in it.index


def test_a_request_whose_loads_fail_is_computed(rig: Make) -> None:
    """Others still hit. Two ranks' reports of one load are one failure."""
    it = rig()
    for _ in range(MAX_FAILED_LOADS):
        it.stored(A)
        load = it.load(A)
        for _ in range(2):
            it.pool.on_reports(Reports(failed={load.ticket: {0}}))
        it.pool.end_load("r")
    it.stored(A)
    assert it.pool.lookup(A, "r") is MISS
    assert it.pool.lookup(A, "other") is HIT
    it.pool.forget_request("r")
    assert it.pool.lookup(A, "r") is HIT


def test_one_failed_load_is_forgiven(rig: Make) -> None:
    """The second ends it."""
    it = rig()
    it.stored(A, B)
    it.loaded(A, failed={0})
    assert it.pool.lookup(B, "r") is HIT


def test_a_failure_after_the_request_is_forgotten_with_it(rig: Make) -> None:
    """Its id is not remembered for ever; its load ends all the same."""
    it = rig()
    it.stored(A)
    load = it.load(A)
    it.pool.forget_request("r")
    it.pool.on_reports(Reports(failed={load.ticket: {0}}))
    it.pool.end_load("r")
    it.pool.end_step()
    assert (it.pool.lookups.failed_loads, it.references, it.pool.lookups.exceptional) == ({}, 0, False)


# ---- life cycle --------------------------------------------------------------------------------------------------


def test_reset_forgets_all_keys_and_what_runs(rig: Make) -> None:
    """Reports of before are dropped: new blocks in the same slots stay good."""
    it = rig(slots=3)
    it.stored(A)
    load, store = it.load(A), it.pool.begin_store([B], "w")
    it.changes()
    it.pool.reset()
    assert it.changes() == [(MEMORY, "removed", (A,))]
    assert (len(it.index), it.index.free, it.pool.jobs._running) == (0, 3, {})
    new = it.stored(A, B, C)
    assert sorted(new.slots) == [0, 1, 2]
    it.pool.on_reports(Reports(failed={load.ticket: {0}, store.ticket: {0}}))
    assert all(it.index.state[slot] == State.READY and it.index.good[slot] for slot in new.slots)


def test_reset_leaves_the_store_its_parts(rig: Make) -> None:
    """Other engines use them."""
    it = rig(remote=True)
    it.stored(A)
    it.settle()
    it.presence.remote.add(A)
    it.pool.reset()
    it.hits(A)
    assert it.pool.tier_of(A) is Tier.REMOTE


def test_close_ends_the_presence(rig: Make) -> None:
    """With or without one."""
    it = rig(remote=True)
    it.pool.close()
    assert it.presence.closed
    rig().pool.close()
