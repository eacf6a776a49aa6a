"""What the slabs hold, and what of it a journal brings back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from connector.tests.unit.pools import KEYS, disk_index
from kvpool_connector.scheduler.secondary.base import ABSENT
from kvpool_connector.scheduler.secondary.disk import DiskIndex
from kvpool_connector.transfer import Spill

A, B, C, D = KEYS[:4]
Open = Callable[[], DiskIndex]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the same folder, with three slots; the one before must be closed."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(disk_index(tmp_path, 3)))


def writing(disk: DiskIndex, *keys: bytes) -> tuple[Spill, list[bytes]]:
    """A write that was begun, of all of these keys, and what made room for it."""
    spill, evicted = disk.begin(1, keys, range(len(keys)))
    assert spill is not None
    assert (spill.keys, spill.slots) == (keys, tuple(range(len(keys))))
    return spill, evicted


def written(disk: DiskIndex, *keys: bytes) -> tuple[int, ...]:
    """Their slots."""
    spill, _ = writing(disk, *keys)
    disk.end(spill, set())
    return spill.disk_slots


def found(disk: DiskIndex) -> dict[bytes, int]:
    """All that can be read."""
    return {key: slot for key in KEYS if (slot := disk.find(key)) != ABSENT}


def test_a_key_is_found_when_its_bytes_are_there(opened: Open) -> None:
    """Not before: but it is not written twice."""
    disk = opened()
    spill, evicted = writing(disk, A)
    assert (disk.find(A), A in disk, disk.lacks(A, 0), evicted) == (ABSENT, True, False, [])
    assert disk.begin(2, [A], [0]) == (None, [])
    disk.end(spill, set())
    assert ((disk.find(A),), len(disk), disk.slots) == (spill.disk_slots, 1, 3)


def test_what_could_not_be_written_is_not_there(opened: Open) -> None:
    """Its slot is free again."""
    disk = opened()
    spill, _ = writing(disk, A)
    disk.end(spill, {0})
    assert (disk.find(A), A in disk, disk._index.free) == (ABSENT, False, 3)
    disk.close()
    assert found(opened()) == {}


def test_the_coldest_makes_room(opened: Open) -> None:
    """A read makes warm."""
    disk = opened()
    for key in (A, B, C):
        written(disk, key)
    slot = disk.find(A)
    disk.pin([slot])
    disk.release([slot])
    disk.end_step()
    assert writing(disk, D)[1] == [B]


def test_what_is_read_promised_or_written_makes_no_room(opened: Open) -> None:
    """What finds no slot is not written."""
    disk = opened()
    a, b = written(disk, A, B)
    disk.pin([a])
    assert disk.find(B) == b
    spill, evicted = disk.begin(2, [C, D], [4, 5])
    assert spill is not None
    assert (spill.keys, spill.slots, evicted) == ((C,), (4,), [])
    assert disk.begin(3, [D], [5]) == (None, [])
    disk.end_step()
    spill, evicted = writing(disk, D)
    assert (spill.disk_slots, evicted) == ((b,), [B])


def test_a_bad_part_is_forgotten(opened: Open) -> None:
    """For ever, and once."""
    disk = opened()
    slot, _ = written(disk, A, B)
    disk.pin([slot])
    assert not disk.lose(A, slot, late=True)
    assert disk.lose(A, slot, late=False)
    assert disk.find(A) == ABSENT
    assert disk._index.free == 1  # it is still read
    assert not disk.lose(A, slot, late=False)  # another rank says the same
    disk.release([slot])
    assert disk._index.free == 2
    assert not disk.lose(A, slot, late=False)
    assert not disk.lose(B, slot, late=False)
    disk.close()
    assert list(found(opened())) == [B]


def test_a_restart_brings_back_what_was_written(opened: Open) -> None:
    """In its slots; not what was being written, nor what made room."""
    disk = opened()
    slots = written(disk, A, B, C)
    spill, (evicted,) = writing(disk, D)
    kept = {key: at for key, at in zip((A, B, C), slots, strict=True) if at not in spill.disk_slots}
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
    assert writing(opened(), D)[1] == [C]


def test_keys_are_what_can_be_read(opened: Open) -> None:
    """Not what is being written."""
    disk = opened()
    written(disk, A)
    writing(disk, B)
    assert disk.keys() == [A]


def test_a_reset_forgets_all_but_slots_in_writing(opened: Open) -> None:
    """These are free when their writers ended; the journal is empty, too."""
    disk = opened()
    written(disk, A)
    spill, _ = writing(disk, B)
    disk.reset([spill])
    assert (len(disk), disk._index.free, found(disk)) == (0, 2, {})
    others, _ = disk.begin(2, [A, B, C], [0, 1, 2])
    assert others is not None
    assert len(others.disk_slots) == 2
    disk.give_back(spill)
    assert writing(disk, D)[0].disk_slots == spill.disk_slots
    disk.close()
    assert found(opened()) == {}
