"""What the tiers hold, and the notes that all decisions about them share. A value that is passed around, no decisions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from kvpool_connector.scheduler.admission import Admission
from kvpool_connector.scheduler.disk import DiskIndex
from kvpool_connector.scheduler.events import Events
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.scheduler.watchdog import Watchdog
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import SlotIndex
from kvpool_connector.transfer import Tier


@dataclasses.dataclass(slots=True)
class Contents:
    """One per pool; scheduler's thread."""

    index: SlotIndex
    """Memory: which key is in which row of the ranks' arenas."""
    disk: DiskIndex | None
    presence: Presence | None
    admission: Admission
    events: Events
    watchdog: Watchdog
    loading: Counter[Tier] = dataclasses.field(default_factory=Counter)
    """Chunks that each lower tier has still to deliver for loads that were begun."""
    broken: str = ""
    """Why nothing is loaded or stored any more; empty while all is well."""
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    """What happened, for metrics; the owner takes and clears it."""

    @property
    def generation(self) -> int:
        """Of the remote store; 0 without one."""
        return 0 if self.presence is None else self.presence.generation

    def holds(self, key: Key, slot: int) -> bool:
        """Whether the row is still its key's, and good."""
        return bool(self.index.good[slot]) and self.index.find(key) == slot

    def note_evicted(self, evicted: Sequence[tuple[Key, int]]) -> None:
        """These made room in memory."""
        if evicted:
            self.counts["memory evicted"] += len(evicted)
            self.events.removed(Tier.MEMORY, [key for key, _ in evicted])

    def lose(self, key: Key, slot: int) -> None:
        """The row does not hold its key's bytes, if it still is that key's."""
        if self.index.find(key) == slot:
            if self.index.good[slot]:
                self.events.removed(Tier.MEMORY, [key])
            self.index.condemn(slot)

    def lose_below(self, key: Key, disk_slot: int | None) -> None:
        """What was read from a lower tier is not the key's part, or was not there. ``disk_slot``: None for the remote store."""
        if disk_slot is not None:
            if self.disk is not None and self.disk.forget(key, disk_slot):
                self.events.removed(Tier.DISK, [key])
        elif self.presence is not None:
            self.presence.believe([key], False)
