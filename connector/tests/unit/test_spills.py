"""The queue of writes over targets that the test owns. What the pool makes of it: test_pool_tiers.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from kvpool_connector.scheduler.secondary.base import ABSENT, Secondary, WritePolicy
from kvpool_connector.scheduler.spills import BATCH, Spills
from kvpool_connector.tiers.policy import make_policy
from kvpool_connector.tiers.slots import SlotIndex, State
from kvpool_connector.transfer import Spill, Ticket, Tier


class FakeTier(Secondary):
    """Takes what it is told to take, and is never read."""

    usable = True

    def __init__(self, tier: Tier, policy: WritePolicy) -> None:
        self.tier, self.policy = tier, policy
        self.has: set[bytes] = set()
        self.noted: list[int] = []
        self.seen_again: list[bytes] = []
        self.dropped: list[tuple[bytes, int]] = []
        self.room = 1000
        self.ended: list[tuple[Spill, set[int]]] = []

    def lacks(self, key: bytes, slot: int) -> bool:
        return key not in self.has

    def begin(self, ticket: Ticket, keys: Sequence[bytes], slots: Sequence[int]) -> tuple[Spill | None, list[bytes]]:
        count = min(self.room, len(keys))
        if not count:
            return None, []
        return Spill(ticket, self.tier, tuple(keys[:count]), tuple(slots[:count])), [b"gone"]

    def end(self, spill: Spill, missing: set[int]) -> None:
        self.ended.append((spill, missing))
        self.has |= {key for position, key in enumerate(spill.keys) if position not in missing}

    def held(self, slots: Sequence[int], generation: int) -> None:
        self.noted += slots

    def used(self, keys: Sequence[bytes], slots: Sequence[int]) -> None:
        self.seen_again += keys

    def find(self, key: bytes, req_id: str, window: int | None, at_head: bool) -> int:
        return ABSENT

    def lose(self, key: bytes, place: int, *, late: bool) -> bool:
        return False

    def reset(self, running: Sequence[Spill]) -> None:
        pass

    def close(self) -> None:
        pass

    def lost(self) -> list[tuple[bytes, int]]:
        lost, self.dropped = self.dropped, []
        self.has -= {key for key, _ in lost}
        return lost


class Rig:
    """An index with blocks in it, and one target or two."""

    def __init__(self, *targets: FakeTier, slots: int = 64, ranks: int = 1) -> None:
        self.index = SlotIndex(slots, make_policy("lru"))
        self.targets = targets
        self.spills = Spills(self.index, targets, ranks, itertools.count(1).__next__)

    def fill(self, count: int) -> tuple[list[bytes], list[int]]:
        """READY blocks."""
        keys = [b"%03d" % (len(self.index) + n) for n in range(count)]
        slots = [slot for key in keys if (slot := self.index.add(key, State.READY)) is not None]
        self.index.pin(slots)
        self.index.release(slots, State.READY)
        return keys, slots

    def offered(self, count: int, *, again: bool = False) -> tuple[list[bytes], list[int]]:
        """New blocks, offered."""
        keys, slots = self.fill(count)
        self.spills.offer(keys, slots, again=again)
        return keys, slots

    def issue(self) -> list[Spill]:
        """Without what made room."""
        return self.spills.issue()[0]


@pytest.fixture
def disk() -> FakeTier:
    """Writes at once."""
    return FakeTier(Tier.DISK, "write_through")


@pytest.fixture
def back() -> FakeTier:
    """Writes late."""
    return FakeTier(Tier.DISK, "write_back")


def test_a_batch_is_bounded(disk: FakeTier) -> None:
    """A tier reports it within a fraction of a second; more is more spills, up to the bound on pinned rows."""
    rig = Rig(disk, slots=400)
    rig.offered(150)
    assert [len(spill.keys) for spill in rig.issue()] == [BATCH] * 4  # pinned: 128, and no new one from 100 on
    assert rig.spills.pinned == 4 * BATCH
    assert rig.issue() == []


def test_the_bound_is_for_all_tiers_together(disk: FakeTier) -> None:
    """A quarter of the slots, give or take one batch."""
    rig = Rig(disk, FakeTier(Tier.REMOTE, "write_through"), slots=64)
    rig.offered(64)
    assert [(spill.tier, len(spill.keys)) for spill in rig.issue()] == [(Tier.DISK, BATCH)]
    assert rig.spills.busy


def test_evicted_keys_are_told_with_their_tier(disk: FakeTier) -> None:
    """For the events."""
    rig = Rig(disk)
    rig.offered(1)
    assert rig.spills.issue()[1] == [(Tier.DISK, b"gone")]


def test_a_slot_that_has_another_owner_by_now_is_not_written(disk: FakeTier) -> None:
    """What waits pins nothing."""
    rig = Rig(disk)
    keys, slots = rig.offered(2)
    rig.index.drop(slots[0])
    assert rig.index.add(b"other", State.READY) == slots[0]
    assert [spill.keys for spill in rig.issue()] == [(keys[1],)]


def test_a_condemned_block_is_not_written(disk: FakeTier) -> None:
    """Its bytes are bad."""
    rig = Rig(disk)
    keys, slots = rig.offered(2)
    rig.index.pin(slots)
    rig.index.condemn(slots[0])
    assert [spill.keys for spill in rig.issue()] == [(keys[1],)]
    rig.index.release(slots)


def test_what_the_tier_has_by_now_is_not_written(disk: FakeTier) -> None:
    """Another way was faster."""
    rig = Rig(disk)
    keys, _ = rig.offered(2)
    disk.has.add(keys[0])
    assert [spill.keys for spill in rig.issue()] == [(keys[1],)]


def test_what_a_tier_lost_is_offered_to_it_again(disk: FakeTier) -> None:
    """Unless the row belongs to another block by then."""
    remote = FakeTier(Tier.REMOTE, "selective")
    rig = Rig(disk, remote)
    keys, slots = rig.offered(3, again=True)
    for spill in rig.issue():
        rig.spills.on_report(spill.ticket, [set()])
    assert (disk.seen_again, remote.seen_again) == (keys, keys)
    rig.index.drop(slots[0])
    remote.dropped = list(zip(keys, slots, strict=True))
    rig.spills.renew()
    assert [(spill.tier, spill.keys) for spill in rig.issue()] == [(Tier.REMOTE, tuple(keys[1:]))]
    assert rig.spills.counts["remote lost, to be written again"] == 2


def test_what_is_held_is_noted_by_its_tier(disk: FakeTier) -> None:
    """By no other."""
    remote = FakeTier(Tier.REMOTE, "write_through")
    Rig(disk, remote).spills.held(Tier.REMOTE, [3, 4], 1)
    assert (disk.noted, remote.noted) == ([], [3, 4])


def test_a_report_of_every_rank_ends_a_spill(disk: FakeTier) -> None:
    """Their missing parts are united; what is returned names what the tier has."""
    rig = Rig(disk, ranks=3)
    keys, slots = rig.offered(3)
    (spill,) = rig.issue()
    assert rig.spills.on_report(spill.ticket, [{0}]) is None
    assert sum(rig.index._refs) == 3
    ended = rig.spills.on_report(spill.ticket, [set(), {0, 2}])
    assert ended is not None
    assert (ended.keys, ended.slots) == ((keys[1],), tuple(slots))
    assert disk.ended == [(spill, {0, 2})]
    assert (sum(rig.index._refs), rig.spills.pinned, rig.spills.busy) == (0, 0, False)
    assert (rig.spills.counts["disk written"], rig.spills.counts["disk not written"]) == (1, 2)


def test_a_report_of_an_unknown_spill_is_ignored(disk: FakeTier) -> None:
    """From a life before."""
    rig = Rig(disk)
    assert rig.spills.on_report(99, [set()]) is None
    assert not rig.spills.is_stale(99)


def test_an_unusable_tier_is_not_offered_anything(disk: FakeTier) -> None:
    """And what waited for it is given up, and counted."""
    rig = Rig(disk)
    rig.offered(2)
    disk.usable = False
    rig.offered(1)
    assert (rig.issue(), rig.spills.wanted, rig.spills.busy) == ([], False, False)
    assert rig.spills.counts["disk write given up"] == 2


def test_write_back_marks_what_only_memory_holds(back: FakeTier) -> None:
    """Dirty until it was written; not evicted before."""
    rig = Rig(back, slots=8)
    keys, slots = rig.offered(8)
    assert rig.issue() == []
    assert not any(rig.index.evictable(slot) for slot in slots)
    rig.spills.make_room()
    (spill,) = rig.issue()
    assert spill.keys == (keys[0],)
    assert rig.index.dirty[slots[0]]
    rig.spills.on_report(spill.ticket, [set()])
    assert rig.index.evictable(slots[0])


def test_write_back_waits_for_memory_to_fill(back: FakeTier) -> None:
    """More than an eighth is free: there is time, and some blocks will never need writing."""
    rig = Rig(back, slots=8)
    rig.offered(6)
    rig.spills.make_room()
    assert rig.issue() == []
    rig.offered(1)
    rig.spills.make_room()
    assert len(rig.issue()) == 1


def test_a_block_that_could_not_be_written_back_is_given_up(back: FakeTier) -> None:
    """Rather than filling memory with it."""
    rig = Rig(back, slots=8)
    _, slots = rig.offered(8)
    rig.spills.make_room()
    (spill,) = rig.issue()
    rig.spills.on_report(spill.ticket, [{0}])
    assert rig.index.evictable(slots[0])


def test_write_back_to_a_tier_without_room_is_given_up(back: FakeTier) -> None:
    """The same."""
    rig = Rig(back, slots=8)
    _, slots = rig.offered(8)
    back.room = 0
    rig.spills.make_room()
    assert (rig.issue(), rig.spills.busy) == ([], False)
    assert rig.index.evictable(slots[0])


def test_a_block_that_two_tiers_lack_is_dirty_for_both(back: FakeTier) -> None:
    """Written to one of them, it stays."""
    remote = FakeTier(Tier.REMOTE, "write_back")
    rig = Rig(back, remote, slots=8)
    _, slots = rig.offered(8)
    rig.spills.make_room()
    spills = rig.issue()
    assert [spill.tier for spill in spills] == [Tier.DISK, Tier.REMOTE]
    rig.spills.on_report(spills[0].ticket, [set()])
    assert not rig.index.evictable(slots[0])
    rig.spills.on_report(spills[1].ticket, [set()])
    assert rig.index.evictable(slots[0])


def test_a_tier_that_went_away_makes_dirty_blocks_evictable(back: FakeTier) -> None:
    """The coldest, when their room is needed."""
    rig = Rig(back, slots=8)
    _, slots = rig.offered(8)
    back.usable = False
    rig.spills.make_room()
    assert [rig.index.evictable(slot) for slot in slots] == [True] + [False] * 7
    assert rig.spills.counts["disk write given up"] == 1


def test_a_reset_forgets_what_waits_and_names_what_runs(disk: FakeTier) -> None:
    """A spill from before says so when it ends, and its target is not told."""
    rig = Rig(disk)
    rig.offered(2)
    (spill,) = rig.issue()
    rig.offered(1)
    assert rig.spills.reset() == [spill]
    rig.index.clear(keep=spill.slots)
    assert rig.spills.is_stale(spill.ticket)
    assert rig.issue() == []
    assert rig.spills.on_report(spill.ticket, [set()]) == spill
    assert (disk.ended, rig.index.free, rig.spills.pinned, rig.spills.busy) == ([], 64, 0, False)
