"""Which blocks go down, when, and which rows are still being read for it.

A block is first stored in memory. From there it is written to disk and store by each tier's write policy: at once
(`write_through`), when memory needs its slot (`write_back`) or when it is seen again (`selective`). A write reads the
row where it lies, so the slot is pinned until every rank has reported. What waits is bounded by the number of slots and pins
nothing: a block that is evicted meanwhile is not written.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from kvpool_connector.scheduler.secondary.base import Secondary
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import SlotIndex
from kvpool_connector.transfer import Spill, Ticket, Tier

BATCH = 32
"""Parts of one spill: some 32-128 MB, a fraction of a second for a local store."""


@dataclasses.dataclass(slots=True)
class _Running:
    spill: Spill
    ranks: int
    """That have not yet reported."""
    missing: set[int] = dataclasses.field(default_factory=set)
    stale: bool = False
    """From before a reset: the slots are only given back."""


class Spills:
    """Queue and tickets of writes to lower tiers. One thread."""

    def __init__(
        self, index: SlotIndex, secondaries: Sequence[Secondary], world_size: int, issue_ticket: Callable[[], Ticket]
    ) -> None:
        self._index, self._secondaries, self._world_size, self._issue_ticket = (
            index,
            secondaries,
            world_size,
            issue_ticket,
        )
        self._waiting: list[dict[int, Key]] = [{} for _ in secondaries]
        self._bits = [1 << number for number, _ in enumerate(secondaries)]
        self._running: dict[Ticket, _Running] = {}
        self._most_pinned = max(1, index.slots // 4)
        self._pinned = 0
        self._has_back = any(lower.policy == "write_back" for lower in secondaries)
        self.counts: Counter[str] = Counter()

    @property
    def wanted(self) -> bool:
        """There is a lower tier to offer rows to."""
        return any(lower.usable for lower in self._secondaries)

    @property
    def busy(self) -> bool:
        """Work is waiting or running: only engine steps bring it to its end."""
        return bool(self._running) or any(self._waiting)

    @property
    def pinned(self) -> int:
        """Rows that are being read."""
        return self._pinned

    def offer(self, keys: Sequence[Key], slots: Sequence[int], *, again: bool) -> None:
        """These rows hold blocks that were just stored, loaded, or (``again``) seen once more."""
        for lower, waiting, bit in zip(self._secondaries, self._waiting, self._bits, strict=True):
            if not lower.usable or (lower.policy == "selective" and not again):
                continue
            if again:
                lower.used(keys, slots)
            lacking = [(key, slot) for key, slot in zip(keys, slots, strict=True) if lower.lacks(key, slot)]
            if lower.policy == "write_back":
                for _, slot in lacking:
                    self._index.dirty[slot] |= bit
            else:
                waiting.update((slot, key) for key, slot in lacking)

    def make_room(self) -> None:
        """Queue the coldest rows that only memory holds, before their slots are needed (`write_back`)."""
        if not self._has_back or self._index.free > self._index.slots // 8:
            return
        for slot in self._index.coldest(max(1, self._index.slots // 8)):
            self._queue_dirty(slot)

    def renew(self) -> None:
        """Offer what a tier turned out to have lost once more."""
        for lower in self._secondaries:
            lost = [(key, slot) for key, slot in lower.lost() if self._here(key, slot)]
            if lost:
                self.counts[f"{lower.tier.value} lost, to be written again"] += len(lost)
                self.offer(*_unzip(lost), again=True)

    def _queue_dirty(self, slot: int) -> None:
        for lower, waiting, bit in zip(self._secondaries, self._waiting, self._bits, strict=True):
            if self._index.dirty[slot] & bit:
                if lower.usable:
                    waiting[slot] = self._index.key(slot)
                else:
                    self._index.dirty[slot] &= ~bit  # nowhere to go: forgetting it is better than filling memory
                    self.counts[f"{lower.tier.value} write given up"] += 1

    def issue(self) -> tuple[list[Spill], list[tuple[Tier, Key]]]:
        """Start what fits into the bound on pinned rows.

        Returns:
            the spills for the ranks, and the keys that lower tiers evicted for them.
        """
        spills: list[Spill] = []
        evicted: list[tuple[Tier, Key]] = []
        for lower, waiting in zip(self._secondaries, self._waiting, strict=True):
            if waiting and not lower.usable:
                self._drop(lower, waiting)
            while waiting and self._pinned < self._most_pinned:
                slots = list(itertools.islice(waiting, BATCH))
                keys = [waiting.pop(slot) for slot in slots]
                there = [(key, slot) for key, slot in zip(keys, slots, strict=True) if self._here(key, slot)]
                there = [(key, slot) for key, slot in there if lower.lacks(key, slot)]
                spill, gone = lower.begin(self._issue_ticket(), *_unzip(there)) if there else (None, [])
                evicted += [(lower.tier, key) for key in gone]
                if spill is None:
                    self._clean(lower, [slot for _, slot in there])
                    continue
                self._index.pin(spill.slots)
                self._pinned += len(spill.slots)
                self._running[spill.ticket] = _Running(spill, self._world_size)
                spills.append(spill)
        return spills, evicted

    def on_report(self, ticket: Ticket, ranks: Sequence[set[int]]) -> Spill | None:
        """Some ranks ended a spill. Returns it, without its missing keys, when the last one did."""
        running = self._running.get(ticket)
        if running is None:
            return None
        running.ranks -= len(ranks)
        running.missing.update(*ranks)
        if running.ranks:
            return None
        del self._running[ticket]
        spill = running.spill
        self._pinned -= len(spill.slots)
        lower = next(lower for lower in self._secondaries if lower.tier is spill.tier)
        if running.stale:
            others = {slot for other in self._running.values() if other.stale for slot in other.spill.slots}
            self._index.give_back(slot for slot in spill.slots if slot not in others)
            return spill
        lower.end(spill, running.missing)
        self._clean(lower, spill.slots)
        self._index.release(spill.slots)
        self.counts[f"{spill.tier.value} written"] += len(spill.keys) - len(running.missing)
        self.counts[f"{spill.tier.value} not written"] += len(running.missing)
        return dataclasses.replace(
            spill, keys=tuple(key for position, key in enumerate(spill.keys) if position not in running.missing)
        )

    def held(self, tier: Tier, slots: Sequence[int], generation: int) -> None:
        """A tier was just seen to hold what is in these rows, in that life of it."""
        for lower in self._secondaries:
            if lower.tier is tier:
                lower.held(slots, generation)

    def forget_waiting(self) -> None:
        """Write nothing that is not being written already."""
        for waiting in self._waiting:
            waiting.clear()

    def reset(self) -> list[Spill]:
        """Forget what waits. Returns the spills that still run: their rows and disk slots stay taken until they are
        reported, and :meth:`on_report` then only gives them back."""
        self.forget_waiting()
        for running in self._running.values():
            running.stale = True
        return [running.spill for running in self._running.values()]

    def is_stale(self, ticket: Ticket) -> bool:
        """From before a reset."""
        running = self._running.get(ticket)
        return running is not None and running.stale

    def _here(self, key: Key, slot: int) -> bool:
        return self._index.find(key) == slot and self._index.usable(slot)

    def _drop(self, lower: Secondary, waiting: dict[int, Key]) -> None:
        self.counts[f"{lower.tier.value} write given up"] += len(waiting)
        self._clean(lower, [slot for slot, key in waiting.items() if self._index.find(key) == slot])
        waiting.clear()

    def _clean(self, lower: Secondary, slots: Sequence[int]) -> None:
        bit = self._bits[self._secondaries.index(lower)]
        for slot in slots:
            self._index.dirty[slot] &= ~bit


def _unzip(pairs: Sequence[tuple[Key, int]]) -> tuple[list[Key], list[int]]:
    return [key for key, _ in pairs], [slot for _, slot in pairs]
