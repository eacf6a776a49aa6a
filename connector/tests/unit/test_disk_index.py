"""What the slabs hold, and what of it a journal brings back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from connector.tests.unit.pools import KEYS, disk_index
from kvpool_connector.scheduler.disk import DiskIndex

A, B, C, D = KEYS[:4]
Open = Callable[[], DiskIndex]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the same folder, with three slots; the one before must be closed."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(disk_index(tmp_path, 3)))


def written(disk: DiskIndex, *keys: bytes) -> list[int]:
    """Their slots."""
    slots, _ = disk.begin_write(keys)
    taken = [slot for slot in slots if slot is not None]
    assert len(taken) == len(keys)
    for key, slot in zip(keys, taken, strict=True):
        disk.end_write(key, slot, written=True)
    return taken


def found(disk: DiskIndex) -> dict[bytes, int]:
    """All that can be read."""
    return {key: slot for key in KEYS if (slot := disk.find(key)) is not None}


def test_a_key_is_found_when_its_bytes_are_there(opened: Open) -> None:
    """Not before: but it is not written twice."""
    disk = opened()
    (slot,), evicted = disk.begin_write([A])
    assert (disk.find(A), A in disk, evicted) == (None, True, [])
    assert disk.begin_write([A]) == ([None], [])
    assert slot is not None
    disk.end_write(A, slot, written=True)
    assert (disk.find(A), len(disk), disk.slots) == (slot, 1, 3)


def test_what_could_not_be_written_is_not_there(opened: Open) -> None:
    """Its slot is free again."""
    disk = opened()
    (slot,), _ = disk.begin_write([A])
    assert slot is not None
    disk.end_write(A, slot, written=False)
    assert (disk.find(A), A in disk, disk._index.free) == (None, False, 3)
    disk.close()
    assert found(opened()) == {}


def test_the_coldest_makes_room(opened: Open) -> None:
    """A read makes warm."""
    disk = opened()
    for key in (A, B, C):
        written(disk, key)
    slot = disk.find(A)
    assert slot is not None
    disk.pin([slot])
    disk.release([slot])
    disk.end_step()
    _, evicted = disk.begin_write([D])
    assert evicted == [B]


def test_what_is_read_promised_or_written_makes_no_room(opened: Open) -> None:
    """None in place of a slot; the caller goes without."""
    disk = opened()
    a, _ = written(disk, A, B)
    disk.pin([a])
    assert disk.find(B) is not None
    assert disk.begin_write([C])[0] != [None]
    assert disk.begin_write([D]) == ([None], [])
    disk.end_step()
    assert disk.begin_write([D]) == ([1], [B])


def test_a_bad_part_is_forgotten(opened: Open) -> None:
    """For ever, and once."""
    disk = opened()
    slot, _ = written(disk, A, B)
    disk.pin([slot])
    assert disk.forget(A, slot)
    assert disk.find(A) is None
    assert disk._index.free == 1  # it is still read
    assert not disk.forget(A, slot)  # another rank says the same
    disk.release([slot])
    assert disk._index.free == 2
    assert not disk.forget(A, slot)
    assert not disk.forget(B, slot)
    disk.close()
    assert list(found(opened())) == [B]


def test_a_restart_brings_back_what_was_written(opened: Open) -> None:
    """In its slots; not what was being written, nor what made room."""
    disk = opened()
    slots = written(disk, A, B, C)
    (slot,), (evicted,) = disk.begin_write([D])
    kept = {key: at for key, at in zip((A, B, C), slots, strict=True) if at != slot}
    assert evicted not in kept
    disk.close()
    again = opened()
    assert found(again) == kept
    assert sorted(again.keys()) == sorted(kept)


def test_a_restart_keeps_the_order_of_age(opened: Open) -> None:
    """What was written first goes first."""
    disk = opened()
    for key in (C, A, B):
        written(disk, key)
    disk.close()
    assert opened().begin_write([D])[1] == [C]


def test_keys_are_what_can_be_read(opened: Open) -> None:
    """Not what is being written."""
    disk = opened()
    written(disk, A)
    disk.begin_write([B])
    assert disk.keys() == [A]


def test_clear_forgets_all_but_slots_in_writing(opened: Open) -> None:
    """These are free when their writers ended; the journal is empty, too."""
    disk = opened()
    written(disk, A)
    (slot,), _ = disk.begin_write([B])
    assert slot is not None
    disk.clear(writing=[slot])
    assert (len(disk), disk._index.free, found(disk)) == (0, 2, {})
    slots, _ = disk.begin_write([A, B, C])
    assert slot not in slots
    assert slots.count(None) == 1
    disk.give_back([slot])
    assert disk.begin_write([D])[0] == [slot]
    disk.close()
    assert found(opened()) == {}
