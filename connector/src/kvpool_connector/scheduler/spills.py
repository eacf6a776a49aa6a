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
from typing import Literal, Protocol

from kvpool_connector.scheduler.disk import DiskIndex
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import SlotIndex
from kvpool_connector.transfer import Spill, Ticket, Tier

BATCH = 32
"""Parts of one spill: some 32-128 MB, a fraction of a second for a local store."""
WritePolicy = Literal["write_through", "write_back", "selective"]


class Target(Protocol):
    """A lower tier as the spills see it."""

    tier: Tier
    policy: WritePolicy

    @property
    def usable(self) -> bool:
        """Whether writing makes sense at present."""

    def lacks(self, key: Key, slot: int) -> bool:
        """Whether the tier is not known to hold what is in this row."""

    def begin(self, ticket: Ticket, keys: Sequence[Key], slots: Sequence[int]) -> tuple[Spill | None, list[Key]]:
        """What to write, perhaps less than asked or nothing, and the keys that make room."""

    def end(self, spill: Spill, missing: set[int]) -> None:
        """All ranks reported; these positions are not in the tier."""

    def held(self, slots: Sequence[int], generation: int) -> None:
        """The tier was just seen to hold what is in these rows, in that life of it."""

    def used(self, keys: Sequence[Key], slots: Sequence[int]) -> None:
        """These rows, which the tier is known to hold, are used again."""

    def lost(self) -> list[tuple[Key, int]]:
        """Called in every step: rows of which it turned out that the tier holds them no more."""


class DiskTarget:
    """The ranks' slabs."""

    tier = Tier.DISK

    def __init__(self, disk: DiskIndex, policy: WritePolicy) -> None:
        self._disk, self.policy = disk, policy

    @property
    def usable(self) -> bool:
        """See :class:`Target`."""
        return self._disk.answers

    def lacks(self, key: Key, slot: int) -> bool:
        """See :class:`Target`."""
        return key not in self._disk

    def begin(self, ticket: Ticket, keys: Sequence[Key], slots: Sequence[int]) -> tuple[Spill | None, list[Key]]:
        """See :class:`Target`."""
        found, evicted = self._disk.begin_write(keys)
        taken = [(key, slot, to) for key, slot, to in zip(keys, slots, found, strict=True) if to is not None]
        if not taken:
            return None, evicted
        the_keys, the_slots, targets = zip(*taken, strict=True)
        return Spill(ticket, Tier.DISK, the_keys, the_slots, targets), evicted

    def end(self, spill: Spill, missing: set[int]) -> None:
        """See :class:`Target`."""
        for position, (key, slot) in enumerate(zip(spill.keys, spill.disk_slots, strict=True)):
            self._disk.end_write(key, slot, position not in missing)

    def held(self, slots: Sequence[int], generation: int) -> None:
        """See :class:`Target`. Its index knows."""

    def used(self, keys: Sequence[Key], slots: Sequence[int]) -> None:
        """See :class:`Target`. What goes from the slab goes by the same index."""

    def lost(self) -> list[tuple[Key, int]]:
        """See :class:`Target`."""
        return []


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
        self, index: SlotIndex, targets: Sequence[Target], world_size: int, issue_ticket: Callable[[], Ticket]
    ) -> None:
        self._index, self._targets, self._world_size, self._issue_ticket = index, targets, world_size, issue_ticket
        self._waiting: list[dict[int, Key]] = [{} for _ in targets]
        self._bits = [1 << number for number, _ in enumerate(targets)]
        self._running: dict[Ticket, _Running] = {}
        self._most_pinned = max(1, index.slots // 4)
        self._pinned = 0
        self._has_back = any(target.policy == "write_back" for target in targets)
        self.counts: Counter[str] = Counter()

    @property
    def wanted(self) -> bool:
        """There is a lower tier to offer rows to."""
        return any(target.usable for target in self._targets)

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
        for target, waiting, bit in zip(self._targets, self._waiting, self._bits, strict=True):
            if not target.usable or (target.policy == "selective" and not again):
                continue
            if again:
                target.used(keys, slots)
            lacking = [(key, slot) for key, slot in zip(keys, slots, strict=True) if target.lacks(key, slot)]
            if target.policy == "write_back":
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
        for target in self._targets:
            lost = [(key, slot) for key, slot in target.lost() if self._here(key, slot)]
            if lost:
                self.counts[f"{target.tier.value} lost, to be written again"] += len(lost)
                self.offer(*_unzip(lost), again=True)

    def _queue_dirty(self, slot: int) -> None:
        for target, waiting, bit in zip(self._targets, self._waiting, self._bits, strict=True):
            if self._index.dirty[slot] & bit:
                if target.usable:
                    waiting[slot] = self._index.key(slot)
                else:
                    self._index.dirty[slot] &= ~bit  # nowhere to go: forgetting it is better than filling memory
                    self.counts[f"{target.tier.value} write given up"] += 1

    def issue(self) -> tuple[list[Spill], list[tuple[Tier, Key]]]:
        """Start what fits into the bound on pinned rows.

        Returns:
            the spills for the ranks, and the keys that lower tiers evicted for them.
        """
        spills: list[Spill] = []
        evicted: list[tuple[Tier, Key]] = []
        for target, waiting in zip(self._targets, self._waiting, strict=True):
            if waiting and not target.usable:
                self._drop(target, waiting)
            while waiting and self._pinned < self._most_pinned:
                slots = list(itertools.islice(waiting, BATCH))
                keys = [waiting.pop(slot) for slot in slots]
                there = [(key, slot) for key, slot in zip(keys, slots, strict=True) if self._here(key, slot)]
                there = [(key, slot) for key, slot in there if target.lacks(key, slot)]
                spill, gone = target.begin(self._issue_ticket(), *_unzip(there)) if there else (None, [])
                evicted += [(target.tier, key) for key in gone]
                if spill is None:
                    self._clean(target, [slot for _, slot in there])
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
        target = next(target for target in self._targets if target.tier is spill.tier)
        if running.stale:
            others = {slot for other in self._running.values() if other.stale for slot in other.spill.slots}
            self._index.give_back(slot for slot in spill.slots if slot not in others)
            return spill
        target.end(spill, running.missing)
        self._clean(target, spill.slots)
        self._index.release(spill.slots)
        self.counts[f"{spill.tier.value} written"] += len(spill.keys) - len(running.missing)
        self.counts[f"{spill.tier.value} not written"] += len(running.missing)
        return dataclasses.replace(
            spill, keys=tuple(key for position, key in enumerate(spill.keys) if position not in running.missing)
        )

    def held(self, tier: Tier, slots: Sequence[int], generation: int) -> None:
        """A tier was just seen to hold what is in these rows, in that life of it."""
        for target in self._targets:
            if target.tier is tier:
                target.held(slots, generation)

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

    def _drop(self, target: Target, waiting: dict[int, Key]) -> None:
        self.counts[f"{target.tier.value} write given up"] += len(waiting)
        self._clean(target, [slot for slot, key in waiting.items() if self._index.find(key) == slot])
        waiting.clear()

    def _clean(self, target: Target, slots: Sequence[int]) -> None:
        bit = self._bits[self._targets.index(target)]
        for slot in slots:
            self._index.dirty[slot] &= ~bit


def _unzip(pairs: Sequence[tuple[Key, int]]) -> tuple[list[Key], list[int]]:
    return [key for key, _ in pairs], [slot for _, slot in pairs]
