"""Which key is in which slot of the disk slabs: the same index as for memory, written down in a journal.

The journal has a thread of its own; the bytes belong to the ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from kvpool_connector.scheduler.secondary.base import ABSENT, Secondary, WritePolicy
from kvpool_connector.tiers.journal import Journal
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import SlotIndex, State
from kvpool_connector.transfer import DISK_RETURNED, DISK_SILENT, Spill, Ticket, Tier


class DiskIndex(Secondary):
    """Slots of the slab, hot and cold, and what survives a restart. A place is a slot of the slab."""

    tier = Tier.DISK

    def __init__(self, index: SlotIndex, journal: Journal, policy: WritePolicy = "write_through") -> None:
        """Takes over what an earlier process left."""
        self._index, self._journal, self.policy = index, journal, policy
        self.slots = index.slots
        self._hanging = 0  # calls of the ranks
        self._told: Counter[str] = Counter()
        for key, slot in journal.recovered():
            if not index.restore(key, slot):
                journal.removed(slot)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: Key) -> bool:
        """Stored, or being stored."""
        return key in self._index

    def keys(self) -> list[Key]:
        """See :class:`Secondary`."""
        return [key for key, slot in self._index if self._index.usable(slot)]

    @property
    def usable(self) -> bool:
        """Whether no rank has a call to its disk that hangs. Else nothing is read or written; what is there, stays."""
        return not self._hanging

    def take_counts(self) -> Counter[str]:
        """See :class:`Secondary`: faults of the journal, by each of which a restart finds fewer blocks."""
        if self._journal.errors == self._told:
            return Counter()
        faults = self._journal.errors.copy()
        new, self._told = faults - self._told, faults
        return Counter({f"journal {fault}": count for fault, count in new.items()})

    def on_counts(self, counts: Mapping[str, int]) -> None:
        """Note how many calls to their disks the ranks gave up, and how many of such calls have returned."""
        self._hanging += counts.get(DISK_SILENT, 0) - counts.get(DISK_RETURNED, 0)

    # ---- reading -------------------------------------------------------------------------------------------

    def find(self, key: Key, req_id: str = "", window: int | None = None, at_head: bool = False) -> int:
        """See :class:`Secondary`."""
        slot = self._index.find(key)
        if self._hanging or slot is None or not self._index.usable(slot):
            return ABSENT
        self._index.hold(slot)
        return slot

    def pin(self, places: Sequence[int]) -> None:
        """See :class:`Secondary`."""
        self._index.pin(places)
        self._index.touch(places)

    def release(self, places: Iterable[int]) -> None:
        """See :class:`Secondary`."""
        self._index.release(places)

    def lose(self, key: Key, place: int, *, late: bool) -> bool:
        """See :class:`Secondary`. A part that was read too late is good."""
        if late or self._index.find(key) != place or not self._index.usable(place):
            return False
        self._index.condemn(place)
        self._journal.removed(place)
        return True

    def end_step(self) -> None:
        """See :class:`Secondary`."""
        self._index.end_step()

    # ---- writing -------------------------------------------------------------------------------------------

    def lacks(self, key: Key, slot: int) -> bool:
        """See :class:`Secondary`."""
        return key not in self._index

    def begin(self, ticket: Ticket, keys: Sequence[Key], slots: Sequence[int]) -> tuple[Spill | None, list[Key]]:
        """See :class:`Secondary`."""
        found, evicted = self._take_slots(keys)
        taken = [(key, slot, to) for key, slot, to in zip(keys, slots, found, strict=True) if to is not None]
        if not taken:
            return None, evicted
        the_keys, the_slots, targets = zip(*taken, strict=True)
        return Spill(ticket, Tier.DISK, the_keys, the_slots, targets), evicted

    def end(self, spill: Spill, missing: set[int]) -> None:
        """See :class:`Secondary`."""
        for position, (key, slot) in enumerate(zip(spill.keys, spill.disk_slots, strict=True)):
            written = position not in missing
            if not written:
                self._index.condemn(slot)
            self._index.release([slot], State.READY)
            if written:
                self._journal.stored(key, slot)

    def _take_slots(self, keys: Iterable[Key]) -> tuple[list[int | None], list[Key]]:
        """Return a slot for each key, None where the key is there already or no slot can be had, and the keys that made
        room."""
        evicted: list[tuple[Key, int]] = []
        slots = [None if key in self._index else self._index.add(key, State.STORING, evicted) for key in keys]
        for _, slot in evicted:
            self._journal.removed(slot)
        taken = [slot for slot in slots if slot is not None]
        self._index.pin(taken)
        self._index.touch(taken)
        return slots, [key for key, _ in evicted]

    # ---- life cycle ----------------------------------------------------------------------------------------

    def reset(self, running: Sequence[Spill]) -> None:
        """See :class:`Secondary`."""
        self._index.clear(keep=[slot for spill in running for slot in spill.disk_slots])
        self._journal.clear()

    def give_back(self, spill: Spill) -> None:
        """See :class:`Secondary`."""
        self._index.give_back(spill.disk_slots)

    def close(self) -> None:
        """Write the journal down."""
        self._journal.close()
