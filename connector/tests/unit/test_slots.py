"""The slot index: which key owns which slot, one transition at a time."""

from __future__ import annotations

import pytest

from kvpool_connector.tiers.slots import SlotIndex, State

A, B, C, D = b"a", b"b", b"c", b"d"


def ready(index: SlotIndex, *keys: bytes) -> None:
    """Keys whose bytes are there."""
    for key in keys:
        entry = index.add(key, State.READY)
        assert entry is not None


def test_slots_are_numbered_and_given_once() -> None:
    """Until all are taken and in use."""
    index = SlotIndex(3)
    slots = set()
    for key in (A, B, C):
        entry = index.add(key, State.STORING)
        assert entry is not None
        slots.add(entry.slot)
    assert slots == {0, 1, 2}
    assert index.free == 0
    assert index.add(D, State.STORING) is None
    assert D not in index


def test_the_least_recently_used_makes_room() -> None:
    """And is named, with its slot going to the new key."""
    index = SlotIndex(3)
    ready(index, A, B, C)
    index.touch([A])
    slot, evicted = index[B].slot, list[bytes]()
    entry = index.add(D, State.STORING, evicted)
    assert entry is not None
    assert (entry.slot, evicted) == (slot, [B])
    assert B not in index
    assert {key for key, _ in index} == {A, C, D}


def test_touch_takes_the_last_as_the_most_recent_and_ignores_strangers() -> None:
    """Chains come tail first."""
    index = SlotIndex(3)
    ready(index, A, B, C)
    index.touch([C, D, B, A])
    assert [key for key, _ in index] == [C, B, A]


@pytest.mark.parametrize("state", [State.RESERVED, State.FETCHING, State.STORING])
def test_unfinished_slots_are_not_evicted(state: State) -> None:
    """Someone fills them."""
    index = SlotIndex(1)
    assert index.add(A, state) is not None
    assert index.add(B, State.STORING) is None
    assert A in index


def test_used_and_promised_slots_are_not_evicted() -> None:
    """By reference, or by promise until the end of the step."""
    index = SlotIndex(2)
    ready(index, A, B)
    index[A].refs = 1
    index.hold(B)
    assert index.add(C, State.STORING) is None
    index.end_step()
    assert index.add(C, State.STORING) is not None
    assert A in index
    assert B not in index
    index.release(A)
    assert index[A].evictable


def test_a_reserved_slot_lives_for_one_step() -> None:
    """Unless a load picks it up."""
    index = SlotIndex(2)
    for key in (A, B):
        assert index.add(key, State.RESERVED) is not None
        index.hold(key)
    index[A].state = State.FETCHING
    index[A].refs = 1
    index.end_step()
    assert A in index
    assert not index[A].held
    assert B not in index
    assert index.free == 1


def test_a_bad_entry_goes_with_its_last_reference() -> None:
    """Not before: the slot is still read."""
    index = SlotIndex(1)
    ready(index, A)
    index[A].refs = 2
    index[A].bad = True
    index.release(A)
    assert A in index
    assert index.free == 0
    index.release(A, now=State.READY)
    assert A not in index
    assert index.free == 1
    index.end_step()


def test_clear_keeps_the_slots_that_are_still_read() -> None:
    """They come back by give_back."""
    index = SlotIndex(4)
    ready(index, A, B, C)
    index.hold(C)
    kept = [index[A].slot]
    index.clear(keep=kept)
    assert len(index) == 0
    assert index.free == 3
    taken = []
    for key in (A, B, C, D):
        entry = index.add(key, State.STORING)
        taken.append(entry.slot if entry else None)
    assert kept[0] not in taken
    assert taken[3] is None
    index.give_back(kept)
    entry = index.add(D, State.STORING)
    assert entry is not None
    assert entry.slot == kept[0]
    index.end_step()
