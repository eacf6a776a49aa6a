"""What the tiers hold, and the notes that all decisions about them share. A value that is passed around, no decisions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from kvpool_connector.scheduler.admission import Admission
from kvpool_connector.scheduler.events import Events
from kvpool_connector.scheduler.secondary.base import Secondary
from kvpool_connector.scheduler.watchdog import Watchdog
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import SlotIndex
from kvpool_connector.transfer import Tier


@dataclasses.dataclass(slots=True)
class Contents:
    """One per pool; scheduler's thread."""

    index: SlotIndex
    """Memory: which key is in which row of the ranks' arenas."""
    secondaries: Sequence[Secondary]
    """The tiers below memory, in the order in which they are asked. At most one of each kind."""
    admission: Admission
    events: Events
    watchdog: Watchdog
    loading: Counter[Tier] = dataclasses.field(default_factory=Counter)
    """Chunks that each lower tier has still to deliver for loads that were begun."""
    broken: str = ""
    """Why nothing is loaded or stored any more; empty while all is well."""
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    """What happened, for metrics; the owner takes and clears it."""

    def secondary(self, tier: Tier) -> Secondary | None:
        """Return the tier of that kind, if the pool has it."""
        return next((lower for lower in self.secondaries if lower.tier is tier), None)

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
