"""The slot index: which key owns which slot, one transition at a time."""

from __future__ import annotations

import pytest

from kvpool_connector.tiers.policy import Lru
from kvpool_connector.tiers.slots import SlotIndex, State

A, B, C, D = b"a", b"b", b"c", b"d"


def make(slots: int, *keys: bytes) -> tuple[SlotIndex, list[int]]:
    """An index, and the slots of keys whose bytes are there."""
    index = SlotIndex(slots, Lru())
    taken = [index.add(key, State.READY) for key in keys]
    assert None not in taken
    return index, [slot for slot in taken if slot is not None]


def test_slots_are_numbered_and_given_once() -> None:
    """Until all are taken and in use."""
    index, _ = make(3)
    assert {index.add(key, State.STORING) for key in (A, B, C)} == {0, 1, 2}
    assert (index.free, len(index)) == (0, 3)
    assert index.add(D, State.STORING) is None
    assert D not in index


def test_a_slot_knows_its_key_and_starts_clean() -> None:
    """Also when it was another key's."""
    index, [slot] = make(1, A)
    assert (index.key(slot), index.find(A), index.usable(slot), index.evictable(slot)) == (A, slot, True, True)
    index.tag[slot] = 4_000_000_000
    index.touch([slot])
    assert index.add(B, State.STORING) == slot
    assert (index.find(A), index.find(B), index.key(slot)) == (None, slot, B)
    assert (index.tag[slot], index.dirty[slot], index.state[slot], index.usable(slot)) == (0, 0, State.STORING, False)


def test_the_least_recently_used_makes_room() -> None:
    """And is named, with its slot going to the new key."""
    index, slots = make(3, A, B, C)
    index.touch(slots[:1])
    evicted: list[tuple[bytes, int]] = []
    assert index.add(D, State.STORING, evicted) == slots[1]
    assert evicted == [(B, slots[1])]
    assert {key for key, _ in index} == {A, C, D}


def test_nothing_is_named_where_a_slot_was_free() -> None:
    """Only what was lost."""
    index, _ = make(2, A)
    evicted: list[tuple[bytes, int]] = []
    index.add(B, State.STORING, evicted)
    assert evicted == []


@pytest.mark.parametrize("state", [State.RESERVED, State.FETCHING, State.STORING])
def test_unfinished_slots_are_not_evicted(state: State) -> None:
    """Someone fills them."""
    index, _ = make(1)
    assert index.add(A, state) is not None
    assert index.add(B, State.STORING) is None
    assert A in index
    assert index.coldest(1) == []


def test_used_promised_and_dirty_slots_are_not_evicted() -> None:
    """By reference, by promise until the end of the step, until written down."""
    index, [a, b, c] = make(3, A, B, C)
    index.pin([a])
    index.hold(b)
    index.dirty[c] = 1
    assert index.add(D, State.STORING) is None
    assert index.coldest(3) == [c]
    index.end_step()
    assert index.add(D, State.STORING) == b
    index.dirty[c] = 0
    assert index.add(B, State.STORING) == c
    assert index.add(C, State.STORING) is None
    index.release([a])
    assert index.evictable(a)
    assert index.add(C, State.STORING) == a


def test_a_batch_is_pinned_and_released_together() -> None:
    """Each slot counts for itself; the state changes with the release."""
    index, _ = make(4)
    slots = [slot for key in (A, B, C) if (slot := index.add(key, State.STORING)) is not None]
    index.pin(slots)
    index.pin(slots[:1])
    index.release(slots, now=State.READY)
    assert [index.usable(slot) for slot in slots] == [True] * 3
    assert [index.evictable(slot) for slot in slots] == [False, True, True]
    with pytest.raises(AssertionError):
        index.release(slots)


def test_a_reserved_slot_lives_for_one_step() -> None:
    """Unless a load picks it up."""
    index, _ = make(2)
    for key in (A, B):
        slot = index.add(key, State.RESERVED)
        assert slot is not None
        index.hold(slot)
    a = index.find(A)
    assert a is not None
    index.set_state(a, State.FETCHING)
    index.pin([a])
    index.end_step()
    assert A in index
    assert B not in index
    assert index.free == 1


def test_a_condemned_slot_goes_when_nobody_uses_it() -> None:
    """At once, with its last reference, or at the end of the step that it is promised in; a miss from the beginning."""
    index, [a, b, c] = make(3, A, B, C)
    index.pin([b])
    index.pin([b])
    index.hold(c)
    for slot in (a, b, c):
        index.condemn(slot)
        assert not index.usable(slot)
    assert {key for key, _ in index} == {B, C}
    index.release([b], now=State.READY)
    assert B in index
    assert not index.usable(b)
    index.set_state(b, State.READY)
    assert not index.usable(b)
    index.release([b])
    index.end_step()
    assert (len(index), index.free) == (0, 3)
    index.add(A, State.READY)
    index.add(B, State.READY)
    assert index.add(C, State.READY) is not None
    assert all(index.usable(slot) for slot in (a, b, c))


def test_clear_keeps_the_slots_that_are_still_read() -> None:
    """They come back by give_back; the functions and buffers that a caller holds stay valid."""
    index, [a, _, c] = make(4, A, B, C)
    find, good = index.find, index.good
    index.hold(c)
    index.pin([a])
    index.clear(keep=[a])
    assert (len(index), index.free, find(A), good[a]) == (0, 3, None, 0)
    taken = [index.add(key, State.STORING) for key in (A, B, C, D)]
    assert a not in taken
    assert taken[3] is None
    assert find(A) == taken[0]
    index.give_back([a])
    assert index.add(D, State.STORING) == a
    index.end_step()
    assert len(index) == 4


def test_restore_puts_keys_where_they_lie() -> None:
    """The oldest is evicted first; a taken slot, a taken key and a slot that is still read are refused."""
    index, _ = make(4)
    assert index.restore(B, 2)
    assert index.restore(A, 0)
    assert not index.restore(C, 2)
    assert not index.restore(A, 3)
    assert (index.free, index.find(A), index.find(B)) == (2, 0, 2)
    assert {index.add(C, State.READY), index.add(D, State.READY)} == {1, 3}
    assert index.coldest(2) == [2, 0]
    index.clear(keep=[1])
    assert not index.restore(A, 1)


def test_dropped_slots_are_free() -> None:
    """A dirty one too: its owner decided so."""
    index, [a] = make(1, A)
    index.dirty[a] = 1
    index.drop(a)
    assert (index.free, len(index), A in index) == (1, 0, False)
    assert index.add(B, State.READY) == a
    assert index.evictable(a)
    index.pin([a])
    with pytest.raises(AssertionError):
        index.drop(a)
