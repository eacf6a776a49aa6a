"""The scheduler's decisions about the tiers below memory: hits on disk, and what is written down when."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from connector.tests.unit.fakes import FakePresence
from connector.tests.unit.pools import CHUNK_BYTES, HIT, KEYS, MISS, PENDING, RETRY, Make, compute
from kvpool_connector.scheduler.spills import BATCH
from kvpool_connector.transfer import DISK_RETURNED, DISK_SILENT, Reports, Sample, Tier

A, B, C, D, E, F = KEYS[:6]
MEMORY, DISK, REMOTE = Tier.MEMORY, Tier.DISK, Tier.REMOTE


# ---- hits on disk ------------------------------------------------------------------------------------------------


def test_a_hit_on_disk_reserves_a_slot_of_memory(rig: Make, tmp_path: Path) -> None:
    """At once, without asking anybody; both slots are pinned while the load runs."""
    it = rig(tmp_path)
    it.only_below(A, B)
    assert [it.pool.lookup(key, "r") for key in (A, B)] == [HIT, HIT]
    assert it.pool.tier_of(A) is DISK
    load = it.pool.begin_load([A, B], "r")
    assert [position for position, _ in load.from_disk] == [0, 1]
    assert it.disk is not None
    assert [slot for _, slot in load.from_disk] == [it.disk._index.find(key) for key in (A, B)]
    assert (load.from_remote, load.fetch_s, it.references) == ((), 5.0, 4)
    assert it.pool.lookup(A, "other") is PENDING
    it.pool.end_load("r")
    assert it.references == 0


def test_a_hit_on_disk_is_promoted(rig: Make, tmp_path: Path) -> None:
    """From then on it is a hit in memory, and it is not written down again."""
    it = rig(tmp_path)
    it.only_below(A)
    it.loaded(A)
    assert it.changes() == [(MEMORY, "stored", (A,))]
    assert it.settle() == []
    assert it.load(A).from_disk == ()


def test_the_disk_goes_before_the_remote_store(rig: Make, tmp_path: Path) -> None:
    """Which is not even asked."""
    it = rig(tmp_path, remote=True)
    it.only_below(A)
    it.presence.expire()
    assert it.pool.lookup(A, "r") is HIT
    assert it.presence.asked == []


def test_a_load_from_all_tiers(rig: Make, tmp_path: Path) -> None:
    """Each part from the nearest."""
    it = rig(tmp_path, remote=True)
    it.only_below(A)
    it.stored(B)
    it.settle()
    it.presence.remote.add(C)
    load = it.load(A, B, C)
    assert [position for position, _ in load.from_disk] == [0]
    assert load.from_remote == (2,)
    it.pool.end_load("r")
    assert it.references == 0


def test_a_slot_of_the_slab_that_is_read_is_not_given_away(rig: Make, tmp_path: Path) -> None:
    """A write that needs room goes without."""
    it = rig(tmp_path, disk_slots=1)
    it.only_below(A)
    it.load(A)
    it.stored(B)
    assert it.step().spills == ()
    it.pool.end_load("r")
    it.stored(C)
    assert [spill.keys for spill in it.settle()] == [(C,)]


def test_a_promise_of_the_disk_holds_for_the_step(rig: Make, tmp_path: Path) -> None:
    """And lapses with it, on both tiers."""
    it = rig(tmp_path, disk_slots=1)
    it.only_below(A)
    assert it.pool.lookup(A, "r") is HIT
    assert it.disk is not None
    assert it.disk.begin(1, [B], [0]) == (None, [])
    it.step()
    spill, evicted = it.disk.begin(2, [B], [0])
    assert spill is not None
    assert (spill.disk_slots, evicted) == ((0,), [A])
    assert (it.index.free, A in it.disk) == (4, False)


def test_a_late_read_of_the_disk_keeps_the_part(rig: Make, tmp_path: Path) -> None:
    """The disk was slow, its part is good: the next request may have it. Memory has nothing."""
    it = rig(tmp_path)
    it.only_below(A)
    it.loaded(A, failed={0}, late={0})
    assert it.disk is not None
    assert (A in it.disk, A in dict(it.index), it.references) == (True, False, 0)
    assert it.load(A, req_id="next").from_disk


def test_a_failed_read_of_the_disk_forgets_the_part(rig: Make, tmp_path: Path) -> None:
    """On disk and in memory; an event for the disk, whose part others knew of. The block is written again."""
    it = rig(tmp_path)
    it.only_below(A, B)
    it.loaded(A, B, failed={0})
    assert it.changes() == [(DISK, "removed", (A,)), (MEMORY, "stored", (B,))]
    assert it.disk is not None
    assert (A in it.disk, B in it.disk, it.references) == (False, True, 0)
    assert it.pool.lookup(A, "other") is MISS
    it.stored(A)
    assert [spill.keys for spill in it.settle()] == [(A,)]


def test_a_new_pool_finds_what_was_written(rig: Make, tmp_path: Path) -> None:
    """What had begun only is not there."""
    it = rig(tmp_path)
    it.stored(A)
    it.settle()
    it.stored(B)
    assert len(it.step().spills) == 1
    it.pool.close()
    again = rig(tmp_path)
    assert [again.pool.lookup(key, "r") for key in (A, B)] == [HIT, MISS]
    assert again.load(A).from_disk == ((0, it.disk._index.find(A) if it.disk else -1),)


# ---- when a block is written down ----------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "remote"])
def tier(request: pytest.FixtureRequest) -> Tier:
    """The only one below memory."""
    return Tier(request.param)


def options(tier: Tier, policy: str, tmp_path: Path) -> dict[str, object]:
    """Of a rig with this tier alone."""
    if tier is DISK:
        return {"folder": tmp_path, "disk_policy": policy}
    return {"remote": True, "remote_policy": policy}


def test_write_through_writes_at_once(rig: Make, tmp_path: Path, tier: Tier) -> None:
    """In the step of the store's end. The block is readable meanwhile, and its row is pinned until all ranks reported."""
    it = rig(**options(tier, "write_through", tmp_path), ranks=2)
    transfer = it.stored(A, B)
    it.changes()
    (spill,) = it.step().spills
    assert (spill.tier, spill.keys, spill.slots) == (tier, (A, B), transfer.slots)
    assert it.pool.lookup(A, "r") is HIT
    assert (it.pool.busy, it.pool.spills.pinned) == (True, 2)
    it.pool.on_reports(Reports(spilled={spill.ticket: [{1}]}))
    assert (it.pool.busy, it.changes()) == (True, [])
    it.pool.on_reports(Reports(spilled={spill.ticket: [set()]}))
    assert (it.pool.busy, it.references, it.changes()) == (False, 0, [(tier, "stored", (A,))])
    assert it.step().spills == ()


def test_what_was_not_written_is_written_when_it_is_seen_again(rig: Make, tmp_path: Path, tier: Tier) -> None:
    """The next request that uses the block brings it back, and what was written is not written twice."""
    it = rig(**options(tier, "write_through", tmp_path))
    it.stored(A, B)
    (spill,) = it.step().spills
    it.report(spill, {1})
    it.stored(A, B, req_id="other")
    assert [spill.keys for spill in it.settle()] == [(B,)]
    it.stored(A, B, req_id="third")
    assert it.settle() == []


def test_selective_writes_what_is_seen_twice(rig: Make, tmp_path: Path, tier: Tier) -> None:
    """Most prompts never come again."""
    it = rig(**options(tier, "selective", tmp_path))
    it.stored(A, B)
    assert it.settle() == []
    it.stored(A, C, req_id="other")
    assert [spill.keys for spill in it.settle()] == [(A,)]


def test_write_back_writes_when_memory_needs_the_room(rig: Make, tmp_path: Path, tier: Tier) -> None:
    """The coldest first, and not before."""
    it = rig(**options(tier, "write_back", tmp_path), slots=8)
    for key in KEYS[:6]:
        it.stored(key, req_id=str(key))
        assert it.step().spills == ()
    it.stored(KEYS[6], req_id="w")
    (spill,) = it.step().spills
    assert (spill.tier, spill.keys) == (tier, (A,))


def test_write_back_evicts_nothing_that_is_not_written(rig: Make, tmp_path: Path, tier: Tier) -> None:
    """A block that only memory holds stays, also when a store must do without a slot."""
    it = rig(**options(tier, "write_back", tmp_path), slots=4)
    it.stored(*KEYS[:4])
    assert it.pool.begin_store([E], "w").keys == ()
    spills = it.step().spills
    assert [spill.keys for spill in spills] == [(D,)]
    assert it.pool.begin_store([E], "w").keys == ()  # being written
    it.report(spills[0])
    assert it.stored(E, req_id="other").keys == (E,)
    assert D not in it.index


def test_each_tier_has_its_own_policy(rig: Make, tmp_path: Path) -> None:
    """One block, two spills, at different times."""
    it = rig(tmp_path, remote=True, disk_policy="selective", remote_policy="write_through")
    it.stored(A)
    assert [spill.tier for spill in it.settle()] == [REMOTE]
    it.stored(A, req_id="other")
    assert [spill.tier for spill in it.settle()] == [DISK]


@pytest.mark.parametrize("policy", ["write_through", "write_back"])
def test_writes_to_a_store_that_went_away_are_given_up(rig: Make, policy: str) -> None:
    """Forgetting a block is better than filling memory with what can go nowhere."""
    it = rig(remote=True, remote_policy=policy)
    it.stored(*KEYS[:4])
    it.presence.lose()
    assert it.settle() == []
    assert it.pool.spills.counts["remote write given up"] >= 1
    assert it.stored(E, req_id="other").keys == (E,)


def test_a_store_that_came_back_is_filled_again(rig: Make) -> None:
    """It may have lost everything: what engines still hold and use goes there once more."""
    it = rig(remote=True)
    it.stored(A, B)
    it.settle()
    it.presence.lose()
    it.presence.come_back()
    it.stored(A, req_id="other")
    (spill,) = it.settle()
    assert (spill.keys, spill.generation) == ((A,), 2)
    it.stored(A, req_id="third")
    assert it.settle() == []


def test_a_write_that_ended_after_the_store_came_back_counts_for_the_old_one(rig: Make) -> None:
    """Where it went to may be gone."""
    it = rig(remote=True)
    it.stored(A)
    (spill,) = it.step().spills
    it.presence.come_back()
    it.report(spill)
    it.stored(A, req_id="other")
    assert [spill.generation for spill in it.settle()] == [2]


def test_a_fetch_that_ended_after_the_store_came_back_counts_for_the_old_one(rig: Make) -> None:
    """The part was in the store's former life."""
    it = rig(remote=True)
    it.presence.remote.add(A)
    it.load(A)
    it.presence.come_back()
    it.pool.end_load("r")
    assert [spill.keys for spill in it.settle()] == [(A,)]


def test_what_came_from_the_store_is_not_written_back_to_it(rig: Make, tmp_path: Path) -> None:
    """But to the disk, which lacks it."""
    it = rig(tmp_path, remote=True)
    it.presence.remote.add(A)
    it.loaded(A)
    assert [(spill.tier, spill.keys) for spill in it.settle()] == [(DISK, (A,))]


def test_a_full_disk_evicts_its_coldest_part(rig: Make, tmp_path: Path) -> None:
    """With an event."""
    it = rig(tmp_path, disk_slots=2)
    for key in (A, B, C):
        it.stored(key, req_id=str(key))
        it.settle()
    removed = [change for change in it.changes() if change[1] == "removed"]
    assert removed == [(DISK, "removed", (A,))]
    assert it.disk is not None
    assert [key in it.disk for key in (A, B, C)] == [False, True, True]


def test_spills_pin_no_more_than_a_quarter_of_memory(rig: Make) -> None:
    """And one batch: the rest waits unpinned, and what is evicted meanwhile is not written."""
    it = rig(remote=True, slots=160)
    keys = [bytes([1, number]) for number in range(160)]
    it.stored(*keys)
    spills = it.step().spills
    assert [len(spill.keys) for spill in spills] == [BATCH, BATCH]  # the bound is 40
    assert it.pool.spills.pinned == 2 * BATCH
    assert it.step().spills == ()
    it.stored(*(bytes([2, number]) for number in range(20)), req_id="other")
    for spill in spills:
        it.report(spill)
    written = {key for spill in it.settle() for key in spill.keys}
    assert not written & set(keys[-20:])
    assert len(written) == 160 - 2 * BATCH


# ---- reset in mid-spill ------------------------------------------------------------------------------------------


def test_rows_of_a_running_spill_outlive_a_reset(rig: Make, tmp_path: Path) -> None:
    """In memory and on disk they stay taken until the last rank reported; then they are free."""
    it = rig(tmp_path, remote=True, slots=8, disk_slots=2, ranks=2)
    old = it.stored(A).slots[0]
    spills = it.step().spills
    assert [(spill.tier, spill.slots) for spill in spills] == [(DISK, (old,)), (REMOTE, (old,))]
    it.changes()
    it.pool.reset()
    assert it.changes() == [(MEMORY, "removed", (A,))]
    assert it.disk is not None
    assert (it.index.free, it.disk._index.free, it.pool.busy) == (7, 1, True)
    new = it.stored(*KEYS[:8], req_id="new")
    assert (len(new.keys), old in new.slots) == (7, False)
    it.report(spills[0])
    assert (it.index.free, it.disk._index.free) == (0, 2)  # the other one still reads the row
    it.report(spills[1], {0})
    assert (it.index.free, it.disk._index.free) == (1, 2)
    assert it.changes() == [(MEMORY, "stored", new.keys)]
    assert all(it.index.good[slot] for slot in new.slots)


def test_a_reset_forgets_what_waits_to_be_written(rig: Make, tmp_path: Path) -> None:
    """And the disk with its journal; with events."""
    it = rig(tmp_path)
    it.stored(A)
    it.settle()
    it.changes()
    it.stored(B, req_id="other")
    it.pool.reset()
    assert it.changes()[1:] == [(MEMORY, "removed", (A, B)), (DISK, "removed", (A,))]
    assert it.settle() == []
    assert it.pool.lookup(A, "r") is MISS
    it.pool.close()
    assert rig(tmp_path).pool.lookup(A, "r") is MISS


def test_two_resets_in_one_spill(rig: Make) -> None:
    """The row is given back once."""
    it = rig(remote=True, slots=2)
    it.stored(A)
    (spill,) = it.step().spills
    it.pool.reset()
    it.stored(B)
    it.pool.reset()
    assert it.index.free == 1
    it.report(spill)
    assert (it.index.free, it.pool.busy) == (2, False)
    it.report(spill)  # a report that nobody waits for
    assert it.index.free == 2


def test_a_pool_without_lower_tiers_writes_nothing(rig: Make) -> None:
    """And has nothing to step for."""
    it = rig()
    it.stored(A)
    assert it.settle() == []


def test_a_store_that_is_full_for_one_rank(rig: Make) -> None:
    """One rank's failure is enough for "not in the store"; the presence is told only about the rest."""
    it = rig(remote=True, ranks=2, presence=(presence := FakePresence()))
    it.stored(A, B)
    (spill,) = it.step().spills
    it.pool.on_reports(Reports(spilled={spill.ticket: [{0}, set()]}))
    assert [presence.ask(key, "r") for key in (A, B)] == [None, True]


def test_a_slow_disk_does_not_hide_the_store(rig: Make, tmp_path: Path) -> None:
    """A closed tier is skipped, not the end of the search."""
    it = rig(tmp_path, measured=True, remote=True)
    it.only_below(A)
    it.presence.remote.add(A)
    compute(it.admission, it.clock, 64 * 64, 64 * 0.002)
    for tier, seconds in ((Tier.DISK, 0.01), (Tier.REMOTE, 0.0001)):
        it.pool.on_reports(Reports(samples=[Sample(tier, CHUNK_BYTES, seconds)] * 3))
    transfer = it.load(A)
    assert (transfer.from_disk, transfer.from_remote) == ((), (0,))


def test_what_was_recovered_is_announced(rig: Make, tmp_path: Path) -> None:
    """A router that follows the events would otherwise send its prompts elsewhere."""
    it = rig(tmp_path)
    it.only_below(A)
    it.pool.close()
    assert rig(tmp_path).changes() == [(Tier.DISK, "stored", (A,))]


# ---- a disk that hangs -------------------------------------------------------------------------------------------


def test_a_disk_that_hangs_on_a_rank_is_left_alone(rig: Make, tmp_path: Path) -> None:
    """Neither read nor written until the call has returned on every rank; what it holds stays known. The store is asked."""
    pool = rig(tmp_path, remote=True, ranks=2)
    pool.presence.remote.add(KEYS[1])
    pool.only_below(KEYS[0])
    pool.only_below(KEYS[1])
    pool.pool.on_reports(Reports(counts=Counter({DISK_SILENT: 2})))
    pool.presence.remote = {KEYS[1]}
    pool.presence.expire()
    assert [pool.lookup(KEYS[0]), pool.lookup(KEYS[1])] == [MISS, HIT]
    assert pool.pool.tier_of(KEYS[1]) is Tier.REMOTE
    pool.stored(KEYS[2])
    assert [spill.tier for spill in pool.settle()] == [Tier.REMOTE]
    pool.pool.on_reports(Reports(counts=Counter({DISK_RETURNED: 1})))
    assert pool.lookup(KEYS[0]) is MISS
    pool.pool.on_reports(Reports(counts=Counter({DISK_RETURNED: 1})))
    assert pool.lookup(KEYS[0]) is HIT
    assert pool.pool.tier_of(KEYS[0]) is Tier.DISK


def test_a_request_that_waits_for_a_disk_is_told_at_once(rig: Make, tmp_path: Path) -> None:
    """Its keys are scanned again with the report of the rank."""
    pool = rig(tmp_path, measured=True)
    pool.only_below(KEYS[0])
    assert pool.pool.lookup(KEYS[0], "r") is RETRY
    pool.step()
    pool.pool.on_reports(Reports(counts=Counter({DISK_SILENT: 1})))
    assert pool.pool.lookup(KEYS[0], "r") is MISS
