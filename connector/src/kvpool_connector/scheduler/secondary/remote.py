"""The store that engines share: what it is asked for, what it is known to hold, and what it turned out to have lost."""

from __future__ import annotations

import itertools
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.scheduler.secondary.base import ABSENT, ASKED, Secondary, WritePolicy
from kvpool_connector.stores import ELSEWHERE
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import SlotIndex
from kvpool_connector.transfer import STORE_SILENT, Spill, Ticket, Tier

REFRESH_AFTER_S = 30
"""A row that was last known to be in the store longer ago than this is refreshed when it is used."""
REFRESH_BATCH, MOST_TO_REFRESH = 64, 4096
"""Keys of one refresh, of which there is at most one in a step; and those that wait for one."""


THERE = 0
"""The place of a key that the store has: it is found by its name."""


class RemoteIndex(Secondary):
    """The store that engines share. A row's tag is the generation of the store that is known to hold it: a store that was away
    may have come back empty, and is then filled again by what engines still hold.

    A store that evicts by use knows nothing of the hits in an engine's memory: the hottest blocks would be
    the first that it drops, and nobody would notice. So a row that is used, and was last known to be in the
    store long ago, is refreshed: the store is told in the background that it is used, and says whether it
    has it. If not, it is written again."""

    tier = Tier.REMOTE

    def __init__(
        self,
        presence: Presence,
        index: SlotIndex,
        policy: WritePolicy = "write_through",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        index: of memory, whose rows are written to the store.
        clock: of how long the store is known to hold a row.
        """
        self._presence, self._index, self.policy, self._clock = presence, index, policy, clock
        self._began = clock()
        self._known_at = array("I", bytes(4 * index.slots))  # by slot, in seconds since the beginning
        self._old: dict[Key, int] = {}  # to be refreshed
        self._asked: dict[Key, int] = {}  # being refreshed

    @property
    def usable(self) -> bool:
        """Whether the store answered last time."""
        return self._presence.reachable

    @property
    def generation(self) -> int:
        """See :class:`Secondary`."""
        return self._presence.generation

    def on_counts(self, counts: Mapping[str, int]) -> None:
        """Act on what the ranks met: a store that was waited for in vain, a server that is the wrong one."""
        if counts.get(STORE_SILENT):
            self._presence.doubt()
        if any(counts.get(refusal) for refusal in ELSEWHERE):
            self._presence.redial()

    # ---- reading -------------------------------------------------------------------------------------------

    def find(self, key: Key, req_id: str, window: int | None, at_head: bool) -> int:
        """See :class:`Secondary`."""
        present = self._presence.ask(key, req_id, window, at_head)
        if present is None:
            return ASKED
        return THERE if present else ABSENT

    def lose(self, key: Key, place: int, *, late: bool) -> bool:
        """See :class:`Secondary`. Whether the store has a part that was late, nobody knows."""
        self._presence.believe([key], False)
        return False

    def take_answers(self) -> set[str]:
        """See :class:`Secondary`."""
        return self._presence.take_answers()

    def end_step(self) -> None:
        """See :class:`Secondary`."""
        self._presence.flush()

    def take_counts(self) -> Counter[str]:
        """See :class:`Secondary`."""
        return self._presence.take_counts()

    # ---- writing -------------------------------------------------------------------------------------------

    def lacks(self, key: Key, slot: int) -> bool:
        """See :class:`Secondary`."""
        return bool(self._index.tag[slot] != self._presence.generation)

    def begin(self, ticket: Ticket, keys: Sequence[Key], slots: Sequence[int]) -> tuple[Spill | None, list[Key]]:
        """See :class:`Secondary`."""
        return Spill(ticket, Tier.REMOTE, tuple(keys), tuple(slots), generation=self._presence.generation), []

    def end(self, spill: Spill, missing: set[int]) -> None:
        """See :class:`Secondary`."""
        there = [position for position in range(len(spill.slots)) if position not in missing]
        self.held([spill.slots[position] for position in there], spill.generation)
        self._presence.believe([spill.keys[position] for position in there], True)

    def held(self, slots: Sequence[int], generation: int) -> None:
        """See :class:`Secondary`."""
        now = self._now()
        for slot in slots:
            self._index.tag[slot], self._known_at[slot] = generation, now

    def used(self, keys: Sequence[Key], slots: Sequence[int]) -> None:
        """See :class:`Secondary`. What does not fit is refreshed when it is used once more."""
        before = self._now() - REFRESH_AFTER_S
        for key, slot in zip(keys, slots, strict=True):
            if self._known_at[slot] <= before and len(self._old) < MOST_TO_REFRESH and not self.lacks(key, slot):
                self._old[key] = slot

    def lost(self) -> list[tuple[Key, int]]:
        """See :class:`Secondary`. Sends a few of those that are to be refreshed, once the last few were answered."""
        lost: list[tuple[Key, int]] = []
        for key, present in self._presence.take_refreshed():
            slot = self._asked.get(key)
            if slot is None or self._index.find(key) != slot:
                continue
            if present:
                self.held([slot], self._index.tag[slot])
            else:
                self._index.tag[slot] = 0
                lost.append((key, slot))
        keys = list(itertools.islice(self._old, REFRESH_BATCH))
        if self.usable and self._presence.refresh(keys):
            self._asked = {key: self._old.pop(key) for key in keys}
        return lost

    # ---- life cycle ----------------------------------------------------------------------------------------

    def reset(self, running: Sequence[Spill]) -> None:
        """See :class:`Secondary`. The store keeps its parts: other engines use them."""
        self._presence.forget()

    def close(self) -> None:
        """End the thread that asks."""
        self._presence.close()

    def _now(self) -> int:
        return int(self._clock() - self._began)
