"""Which key is in which slot of the disk slabs: the same index as for memory, written down in a journal.

All methods run on the scheduler's thread. The journal has a thread of its own; the bytes belong to the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvpool_connector.tiers.journal import Journal
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import SlotIndex, State


class DiskIndex:
    """Slots of the slab, hot and cold, and what survives a restart."""

    def __init__(self, index: SlotIndex, journal: Journal) -> None:
        """Takes over what an earlier process left."""
        self._index, self._journal = index, journal
        self._hanging = 0  # calls of the ranks
        for key, slot in journal.recovered():
            if not index.restore(key, slot):
                journal.removed(slot)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def slots(self) -> int:
        """Size of the slab."""
        return self._index.slots

    def keys(self) -> list[Key]:
        """What can be read from the slabs, in no order."""
        return [key for key, slot in self._index if self._index.usable(slot)]

    @property
    def answers(self) -> bool:
        """Whether no rank has a call to its disk that hangs. Else nothing is read or written; what is there, stays."""
        return not self._hanging

    def on_calls(self, given_up: int, returned: int) -> None:
        """Note how many calls to their disks the ranks gave up, and how many of such calls have returned."""
        self._hanging += given_up - returned

    def __contains__(self, key: Key) -> bool:
        """Stored, or being stored."""
        return key in self._index

    def find(self, key: Key) -> int | None:
        """The slot that holds a key's bytes, if they can be read; promised until the end of the scheduling step."""
        slot = self._index.find(key)
        if self._hanging or slot is None or not self._index.usable(slot):
            return None
        self._index.hold(slot)
        return slot

    def pin(self, slots: Sequence[int]) -> None:
        """A load reads these until :meth:`release`."""
        self._index.pin(slots)
        self._index.touch(slots)

    def release(self, slots: Iterable[int]) -> None:
        """The load ended."""
        self._index.release(slots)

    def end_step(self) -> None:
        """Promises lapse."""
        self._index.end_step()

    def begin_write(self, keys: Iterable[Key]) -> tuple[list[int | None], list[Key]]:
        """A slot for each key: None where the key is there already or no slot can be had.

        Returns:
            the slots, and the keys that made room.
        """
        evicted: list[tuple[Key, int]] = []
        slots = [None if key in self._index else self._index.add(key, State.STORING, evicted) for key in keys]
        for _, slot in evicted:
            self._journal.removed(slot)
        taken = [slot for slot in slots if slot is not None]
        self._index.pin(taken)
        self._index.touch(taken)
        return slots, [key for key, _ in evicted]

    def end_write(self, key: Key, slot: int, written: bool) -> None:
        """All ranks hold the bytes, or one could not write them."""
        if not written:
            self._index.condemn(slot)
        self._index.release([slot], State.READY)
        if written:
            self._journal.stored(key, slot)

    def forget(self, key: Key, slot: int) -> bool:
        """What was read there is not the key's part. True if the index said it was."""
        if self._index.find(key) != slot or not self._index.usable(slot):
            return False
        self._index.condemn(slot)
        self._journal.removed(slot)
        return True

    def clear(self, writing: Iterable[int]) -> None:
        """Forget everything; slots in ``writing`` stay taken until :meth:`give_back`."""
        self._index.clear(keep=writing)
        self._journal.clear()

    def give_back(self, slots: Iterable[int]) -> None:
        """Writes that outlived a :meth:`clear` ended."""
        self._index.give_back(slots)

    def close(self) -> None:
        """Write the journal down."""
        self._journal.close()
