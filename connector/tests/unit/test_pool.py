"""The scheduler's decisions, one at a time. test_pool_machine.py lets them meet in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from connector.tests.unit.fakes import FakePresence
from kvpool_connector.scheduler.pool import MAX_FAILED_LOADS, Lookup, Pool
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.tiers.slots import State
from kvpool_connector.transfer import Kind, Reports, Transfer

KEYS = [bytes([number]) * 8 for number in range(8)]


class Rig:
    """A pool with a remote store that answers by the next step."""

    def __init__(self, slots: int = 4, ranks: int = 1, *, remote: bool = True) -> None:
        self.presence = FakePresence()
        self.pool = Pool(slots, ranks, cast(Presence, self.presence) if remote else None)
        self.ranks = ranks

    def put_ended(self, transfer: Transfer, failed: set[int] | None = None) -> None:
        """All ranks report the end of a put."""
        self.pool.on_reports(Reports(puts={transfer.ticket: [failed or set() for _ in range(self.ranks)]}))

    def stored(self, keys: Sequence[bytes], req_id: str = "w") -> Transfer:
        """A store from its beginning to its end."""
        transfer, _ = self.pool.begin_store(keys, req_id)
        self.pool.end_store(transfer.keys)
        if transfer.put and transfer.keys:
            self.put_ended(transfer)
        return transfer

    def busy(self) -> bool:
        """Whether the engine must go on stepping."""
        return self.pool.busy

    def lookup(self, key: bytes, req_id: str = "r") -> Lookup:
        """With a step in between, if the store must be asked."""
        answer = self.pool.lookup(key, req_id)
        if answer is Lookup.RETRY:
            self.pool.end_step()
            answer = self.pool.lookup(key, req_id)
        return answer


def test_unknown_keys_are_misses_without_a_store() -> None:
    """Nothing to ask."""
    assert Rig(remote=False).pool.lookup(KEYS[0], "r") is Lookup.MISS


def test_the_store_is_asked_once_per_step() -> None:
    """RETRY until it answered, then HIT or MISS."""
    rig = Rig()
    rig.presence.remote.add(KEYS[0])
    assert [rig.pool.lookup(key, "r") for key in KEYS[:2]] == [Lookup.RETRY] * 2
    rig.pool.end_step()
    assert [rig.pool.lookup(key, "r") for key in KEYS[:2]] == [Lookup.HIT, Lookup.MISS]
    assert rig.pool.is_remote(KEYS[0])
    assert not rig.pool.is_remote(KEYS[1])


def test_a_stored_block_is_a_hit_from_its_end_on() -> None:
    """A pending store is a miss."""
    rig = Rig(remote=False)
    transfer, evicted = rig.pool.begin_store(KEYS[:2], "w")
    assert (transfer.kind, transfer.keys, transfer.put, evicted) == (Kind.STORE, tuple(KEYS[:2]), False, [])
    assert len(set(transfer.slots)) == 2
    assert rig.pool.lookup(KEYS[0], "r") is Lookup.MISS
    rig.pool.end_store(transfer.keys)
    assert rig.pool.lookup(KEYS[0], "r") is Lookup.HIT
    assert not rig.pool.is_remote(KEYS[0])
    assert not rig.busy()


def test_a_load_from_memory_reads_the_slot_of_the_store() -> None:
    """Without a fetch."""
    rig = Rig()
    stored = rig.stored(KEYS[:3])
    assert [rig.lookup(key) for key in KEYS[:3]] == [Lookup.HIT] * 3
    load = rig.pool.begin_load(KEYS[:3], "r")
    assert (load.slots, load.fetch, load.req_id) == (stored.slots, (False,) * 3, "r")
    rig.pool.end_step()
    rig.pool.end_load(load.keys, "r")
    assert all(entry.refs == 0 for _, entry in rig.pool.index)


def test_a_load_from_the_store_fills_a_slot_that_then_serves_memory() -> None:
    """PENDING for others while it runs."""
    rig = Rig()
    rig.presence.remote.add(KEYS[0])
    assert rig.lookup(KEYS[0]) is Lookup.HIT
    load = rig.pool.begin_load([KEYS[0]], "r")
    assert load.fetch == (True,)
    assert rig.pool.lookup(KEYS[0], "other") is Lookup.PENDING
    rig.pool.end_step()
    rig.pool.end_load([KEYS[0]], "r")
    assert rig.pool.lookup(KEYS[0], "other") is Lookup.HIT
    assert rig.pool.begin_load([KEYS[0]], "other").fetch == (False,)


def test_a_promise_that_no_load_takes_up_lapses() -> None:
    """The slot is free for others in the next step."""
    rig = Rig(slots=1)
    rig.presence.remote.update(KEYS)
    assert [rig.pool.lookup(key, "r") for key in KEYS[:2]] == [Lookup.RETRY] * 2
    rig.pool.end_step()
    assert [rig.pool.lookup(key, "r") for key in KEYS[:2]] == [Lookup.HIT, Lookup.MISS]  # one slot
    assert rig.pool.index.free == 0
    rig.pool.end_step()
    assert rig.pool.index.free == 1


def test_a_promised_slot_is_not_evicted_in_the_same_step() -> None:
    """A load that follows cannot be refused."""
    rig = Rig(slots=1, remote=False)
    rig.stored(KEYS[:1])
    assert rig.pool.lookup(KEYS[0], "r") is Lookup.HIT
    transfer, evicted = rig.pool.begin_store(KEYS[1:2], "w")
    assert (transfer.keys, evicted) == ((), [])
    rig.pool.end_step()
    transfer, evicted = rig.pool.begin_store(KEYS[1:2], "w")
    assert (transfer.keys, evicted) == ((KEYS[1],), [KEYS[0]])


def test_a_chain_is_stored_from_its_head_as_far_as_there_is_room() -> None:
    """A tail without its head can never be hit."""
    rig = Rig(slots=3, remote=False)
    transfer, _ = rig.pool.begin_store(KEYS[:5], "w")
    assert transfer.keys == tuple(KEYS[:3])


def test_the_tail_of_a_chain_is_evicted_first() -> None:
    """Also of the chain that is being stored: its resident head stays."""
    rig = Rig(slots=3, remote=False)
    rig.stored(KEYS[:3])
    _, evicted = rig.pool.begin_store(KEYS[5:6], "w")
    assert evicted == [KEYS[2]]
    rig = Rig(slots=3, remote=False)
    rig.stored(KEYS[:3])
    rig.stored([KEYS[6]])
    transfer, evicted = rig.pool.begin_store([*KEYS[:2], KEYS[5]], "w")
    assert (transfer.keys, evicted) == ((KEYS[5],), [KEYS[6]])


def test_an_empty_store_leaves_nothing_behind() -> None:
    """vLLM throws it away and never completes it."""
    rig = Rig()
    rig.stored(KEYS[:2])
    transfer, _ = rig.pool.begin_store(KEYS[:2], "w")
    assert transfer.keys == ()
    assert not rig.pool._running
    assert not rig.busy()


def test_a_put_keeps_its_slot_after_the_store_ended() -> None:
    """Only its report frees the slot, and until then the engine must go on stepping."""
    rig = Rig(slots=1)
    transfer, _ = rig.pool.begin_store(KEYS[:1], "w")
    assert transfer.put
    rig.pool.end_store(transfer.keys)
    assert rig.busy()
    assert rig.lookup(KEYS[0]) is Lookup.HIT  # readable
    rig.pool.end_step()
    assert rig.pool.begin_store(KEYS[1:2], "w")[0].keys == ()
    rig.put_ended(transfer)
    assert not rig.busy()
    assert rig.pool.begin_store(KEYS[1:2], "w")[0].keys == (KEYS[1],)


def test_a_put_ends_when_the_last_rank_reports() -> None:
    """In any outputs; one rank's failure is enough for "not in the store"."""
    rig = Rig(ranks=2)
    transfer, _ = rig.pool.begin_store(KEYS[:2], "w")
    rig.pool.end_store(transfer.keys)
    rig.pool.on_reports(Reports(puts={transfer.ticket: [{1}]}))
    assert rig.busy()
    rig.pool.on_reports(Reports(puts={transfer.ticket: [set()]}))
    assert not rig.busy()
    assert [rig.pool.index[key].remote for key in KEYS[:2]] == [1, 0]


def test_the_report_of_a_put_may_come_with_the_completion_of_its_store() -> None:
    """Reports first."""
    rig = Rig(ranks=2)
    transfer, _ = rig.pool.begin_store(KEYS[:1], "w")
    rig.put_ended(transfer)
    rig.pool.end_store(transfer.keys)
    assert rig.pool.index[KEYS[0]].refs == 0
    assert rig.pool.index[KEYS[0]].state is State.READY
    assert not rig.pool._running


def test_a_resident_block_that_the_store_lacks_is_stored_again() -> None:
    """Into its own slot; a miss meanwhile, and not twice at a time."""
    rig = Rig()
    first = rig.stored(KEYS[:2])
    assert rig.pool.begin_store(KEYS[:2], "w")[0].keys == ()
    rig.presence.lose()
    assert rig.pool.begin_store(KEYS[:2], "w")[0].keys == ()
    rig.presence.come_back()
    again, evicted = rig.pool.begin_store(KEYS[:2], "w")
    assert (again.keys, again.slots, again.put, evicted) == (first.keys, first.slots, True, [])
    assert rig.pool.lookup(KEYS[0], "r") is Lookup.MISS
    assert rig.pool.begin_store(KEYS[:2], "w")[0].keys == ()
    rig.pool.end_store(again.keys)
    rig.put_ended(again)
    assert rig.pool.begin_store(KEYS[:2], "w")[0].keys == ()


def test_a_dropped_put_is_tried_again() -> None:
    """The next request that uses the block brings it back."""
    rig = Rig()
    transfer, _ = rig.pool.begin_store(KEYS[:2], "w")
    rig.pool.end_store(transfer.keys)
    rig.put_ended(transfer, {1})
    assert rig.pool.begin_store(KEYS[:2], "w")[0].keys == (KEYS[1],)


def test_without_a_reachable_store_nothing_is_put() -> None:
    """And nothing waits for a report."""
    rig = Rig()
    rig.presence.lose()
    transfer, _ = rig.pool.begin_store(KEYS[:1], "w")
    assert not transfer.put
    rig.pool.end_store(transfer.keys)
    assert not rig.busy()
    assert not rig.pool._running


def test_a_failed_load_forgets_what_failed_only() -> None:
    """And the store is not believed to have it."""
    rig = Rig()
    rig.stored(KEYS[:3])
    for key in KEYS[:3]:
        assert rig.lookup(key) is Lookup.HIT
    load = rig.pool.begin_load(KEYS[:3], "r")
    rig.pool.end_step()
    rig.pool.on_reports(Reports(failed={load.ticket: {1}}))
    assert rig.pool.lookup(KEYS[1], "other") is Lookup.MISS  # bad, while the load still holds it
    rig.pool.end_load(load.keys, "r")
    assert [key in rig.pool.index for key in KEYS[:3]] == [True, False, True]
    rig.presence.remote.add(KEYS[1])
    assert rig.pool.lookup(KEYS[1], "other") is Lookup.MISS


def test_a_failed_store_was_never_there() -> None:
    """Whether or not its put goes on."""
    for remote in (False, True):
        rig = Rig(remote=remote)
        transfer, _ = rig.pool.begin_store(KEYS[:2], "w")
        rig.pool.on_reports(Reports(failed={transfer.ticket: {0}}))
        rig.pool.end_store(transfer.keys)
        if remote:
            rig.put_ended(transfer, {0})
        assert KEYS[0] not in rig.pool.index
        assert rig.pool.lookup(KEYS[1], "r") is Lookup.HIT
        assert not rig.pool._running


def test_a_request_whose_loads_fail_is_computed() -> None:
    """Others still hit."""
    rig = Rig()
    for _ in range(MAX_FAILED_LOADS):
        rig.stored([KEYS[0]])
        assert rig.lookup(KEYS[0]) is Lookup.HIT
        load = rig.pool.begin_load([KEYS[0]], "r")
        rig.pool.end_step()
        rig.pool.on_reports(Reports(failed={load.ticket: {0}}))
        rig.pool.on_reports(Reports(failed={load.ticket: {0}}))  # another rank, another output: one failed load
        rig.pool.end_load(load.keys, "r")
    rig.stored([KEYS[0]])
    assert rig.pool.lookup(KEYS[0], "r") is Lookup.MISS
    assert rig.pool.lookup(KEYS[0], "other") is Lookup.HIT
    rig.pool.forget_request("r")
    assert rig.pool.lookup(KEYS[0], "r") is Lookup.HIT


def test_a_load_that_fails_after_its_request_is_not_remembered() -> None:
    """Request ids are never used again, so it would stay for ever."""
    rig = Rig()
    rig.stored([KEYS[0]])
    rig.lookup(KEYS[0])
    load = rig.pool.begin_load([KEYS[0]], "r")
    rig.pool.end_step()
    rig.pool.forget_request("r")
    rig.pool.on_reports(Reports(failed={load.ticket: {0}}))
    rig.pool.end_load(load.keys, "r")
    assert not rig.pool._failed_loads
    assert not rig.pool._load_of


def test_reset_forgets_everything_but_running_puts() -> None:
    """Their slots come back with the reports of all ranks; late failures of older jobs touch nothing new."""
    rig = Rig(slots=3, ranks=2)
    put, _ = rig.pool.begin_store(KEYS[:1], "w")
    rig.presence.remote.add(KEYS[1])
    assert rig.lookup(KEYS[1]) is Lookup.HIT
    load = rig.pool.begin_load([KEYS[1]], "r")
    rig.pool.end_step()
    rig.pool.on_reports(Reports(puts={put.ticket: [set()]}))
    rig.pool.reset()
    assert len(rig.pool.index) == 0
    assert rig.pool.index.free == 2
    assert rig.busy()
    assert rig.lookup(KEYS[0]) is Lookup.MISS

    new, _ = rig.pool.begin_store([KEYS[0], KEYS[1], KEYS[2]], "w")
    assert new.keys == (KEYS[0], KEYS[1])
    assert put.slots[0] not in new.slots
    rig.pool.on_reports(Reports(failed={load.ticket: {0}, put.ticket: {0}}, puts={put.ticket: [{0}]}))
    assert rig.pool.index.free == 1
    assert not rig.pool.index[KEYS[0]].bad
    assert not rig.pool.index[KEYS[1]].bad
    rig.pool.end_store(new.keys)
    rig.put_ended(new)
    assert not rig.busy()


def test_close_ends_the_presence() -> None:
    """With or without one."""
    rig = Rig()
    rig.pool.close()
    assert rig.presence.closed
    Rig(remote=False).pool.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_loads_of_one_block(order: tuple[int, int]) -> None:
    """One fails: the block stays until the other has ended, then it goes."""
    rig = Rig()
    rig.stored([KEYS[0]])
    loads = []
    for req_id in ("r0", "r1"):
        assert rig.lookup(KEYS[0], req_id) is Lookup.HIT
        loads.append(rig.pool.begin_load([KEYS[0]], req_id))
    rig.pool.end_step()
    rig.pool.on_reports(Reports(failed={loads[0].ticket: {0}}))
    rig.pool.end_load([KEYS[0]], f"r{order[0]}")
    assert rig.pool.index[KEYS[0]].refs == 1
    rig.pool.end_load([KEYS[0]], f"r{order[1]}")
    assert KEYS[0] not in rig.pool.index
    assert rig.pool.index.free == rig.pool.index.slots
