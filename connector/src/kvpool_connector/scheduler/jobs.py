"""Loads and stores from their beginning to their end: which rows they use, and what failed of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set

from kvpool_connector.scheduler.contents import Contents
from kvpool_connector.scheduler.lookups import Lookups
from kvpool_connector.scheduler.spills import Spills
from kvpool_connector.scheduler.verify import Verification
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import State
from kvpool_connector.transfer import Kind, Ticket, Tier, Transfer


@dataclasses.dataclass(slots=True)
class _Running:
    transfer: Transfer
    generations: Mapping[Tier, int] = dataclasses.field(default_factory=dict)
    """Of the tiers from which it fetches, when it began."""
    counted: bool = False
    """A failed load counts once, and not at all if its request is finished."""
    failed: bool = False


class Jobs:
    """Tickets of running transfers. One thread. A slot is pinned from `begin_` to `end_`."""

    def __init__(
        self,
        contents: Contents,
        lookups: Lookups,
        spills: Spills,
        issue: Callable[[], Ticket],
        verification: Verification | None,
        fetch_s: float,
    ) -> None:
        """Args:
        fetch_s: the longest a fetch may take.
        """
        self._contents, self._lookups, self._spills, self._issue = contents, lookups, spills, issue
        self._verification, self._fetch_s = verification, fetch_s
        self._index = contents.index
        self._find, self._good = contents.index.find, contents.index.good
        self._running: dict[Ticket, _Running] = {}
        self._load_of: dict[str, Ticket] = {}  # vLLM runs at most one load per request
        self._store_of: dict[Key, Ticket] = {}  # while the store runs
        self._tails: dict[str, tuple[Key, int]] = {}  # where the part of a request's chain ends that was offered so far

    @property
    def running(self) -> set[Ticket]:
        """Transfers that did not end yet."""
        return set(self._running)

    # ---- loads -------------------------------------------------------------------------------------------

    def begin_load(self, keys: Sequence[Key], req_id: str) -> Transfer:
        """Pin the slots until :meth:`end_load`. Every key was a HIT in this step."""
        contents, index = self._contents, self._index
        slots: list[int] = [self._find(key) for key in keys]  # type: ignore[misc]
        fetches: dict[Tier, list[tuple[int, int]]] = {Tier.DISK: [], Tier.REMOTE: []}
        of_groups: Counter[bytes] = Counter()  # fetched keys of each KV group, which a key ends in
        if self._lookups.reserved:
            for position, slot in enumerate(slots):
                tier, place = self._lookups.take_source(slot)
                if tier is not Tier.MEMORY:
                    index.set_state(slot, State.FETCHING)
                    fetches[tier].append((position, place))
                    of_groups[keys[position][-4:]] += 1
        generations: dict[Tier, int] = {}
        for lower in contents.secondaries:
            if fetches[lower.tier]:
                lower.pin([place for _, place in fetches[lower.tier]])
                generations[lower.tier] = lower.generation
        index.pin(slots)
        index.touch(slots, new_request=False)  # counted when the request's blocks are offered for storing
        fetched = 0
        for tier, found in fetches.items():
            fetched += len(found)
            contents.loading[tier] += len(found)
            contents.counts[f"chunks loaded from {tier.value}"] += len(found)
        contents.counts["chunks loaded from memory"] += len(keys) - fetched
        budget = 0.0
        if fetched:
            prefill_tokens = self._lookups.engine.prefill_tokens()
            # Groups hold the same tokens in turn: computing a chunk makes a part of each.
            chunks = max(of_groups.values())
            budget = contents.admission.fetch_budget_s(chunks, self._fetch_s, prefill_tokens)
        transfer = Transfer(
            Kind.LOAD,
            self._issue(),
            req_id,
            tuple(keys),
            tuple(slots),
            tuple(fetches[Tier.DISK]),
            tuple(position for position, _ in fetches[Tier.REMOTE]),
            budget,
        )
        self._running[transfer.ticket] = _Running(transfer, generations)
        self._load_of[req_id] = transfer.ticket
        contents.watchdog.load_begins(transfer.ticket, req_id, budget)
        return transfer

    def end_load(self, req_id: str) -> bool:
        """All ranks ended the load; what failed was reported before, through :meth:`failed`. Returns whether nothing did."""
        running = self._running.pop(self._load_of.pop(req_id))
        transfer = running.transfer
        self._contents.watchdog.load_ended(transfer.ticket)
        fetched: list[int] = []
        for lower in self._contents.secondaries:
            fetches = transfer.fetches(lower.tier)
            if fetches:
                fetched += fetches
                self._contents.loading[lower.tier] -= len(fetches)
                self._spills.held(lower.tier, [transfer.slots[p] for p in fetches], running.generations[lower.tier])
                lower.release(fetches.values())
        self._index.release(transfer.slots, State.READY)
        if fetched:
            self._lookups.waiting.changed()
            self._arrived(transfer, fetched, again=True)
        return not running.failed

    def _arrived(self, transfer: Transfer, positions: Sequence[int], *, again: bool) -> int:
        """Rows are readable from now on: tell it, and let the lower tiers have what they lack. Returns how many there are."""
        held = [p for p in positions if self._contents.holds(transfer.keys[p], transfer.slots[p])]
        keys, slots = [transfer.keys[p] for p in held], [transfer.slots[p] for p in held]
        self._contents.events.stored(Tier.MEMORY, keys)
        if self._spills.wanted and not self._contents.broken:
            self._spills.offer(keys, slots, again=again)
        return len(held)

    # ---- stores ------------------------------------------------------------------------------------------

    def begin_store(self, keys: Sequence[Key], req_id: str) -> Transfer:
        """Give slots to keys that have none, as many as there are, in the order of ``keys``.

        Returns:
            the transfer, perhaps of no keys: vLLM then throws it away and never completes it.
        """
        nothing = Transfer(Kind.STORE, 0, req_id, (), ())
        if self._contents.broken:
            return nothing
        index, find, good = self._index, self._find, self._good
        resident = [slot for key in keys if (slot := find(key)) is not None and good[slot]]
        compares = self._verification is not None and self._verification.is_picked(req_id)
        if resident and not compares and self._spills.wanted:
            self._spills.offer([index.key(slot) for slot in resident], resident, again=True)
        if len(resident) == len(keys) and not compares:
            self._touch_chain(resident, req_id)
            return nothing
        index.touch(resident, new_request=False)  # first, so that a chain is not evicted for its own tail
        chosen, slots, compared = self._choose(keys, compares=compares)
        self._touch_chain([slot for key in keys if (slot := find(key)) is not None], req_id)
        if not chosen:
            return nothing
        transfer = Transfer(
            Kind.STORE, self._issue(), req_id, tuple(chosen), tuple(slots), compared=frozenset(compared)
        )
        index.pin(slots)
        self._running[transfer.ticket] = _Running(transfer)
        self._store_of.update(dict.fromkeys(chosen, transfer.ticket))
        return transfer

    def _touch_chain(self, chain: Sequence[int], req_id: str) -> None:
        """A further part of the request's chain was used: it belongs behind the part before it."""
        if not chain:
            return
        tail = self._tails.get(req_id)
        after = None if tail is None or self._find(tail[0]) != tail[1] else tail[1]
        self._index.touch(chain, after=after)
        self._tails[req_id] = (self._index.key(chain[-1]), chain[-1])

    def _choose(self, keys: Sequence[Key], *, compares: bool) -> tuple[list[Key], list[int], list[int]]:
        """Keys to store, their slots, and which positions hold the block already and are compared."""
        chosen: list[Key] = []
        slots: list[int] = []
        compared: list[int] = []
        evicted: list[tuple[Key, int]] = []
        for key in keys:
            slot = self._find(key)
            if slot is None:
                slot = self._index.add(key, State.STORING, evicted)
                if slot is None:
                    self._contents.counts["no slot for a store"] += 1
                    break
            elif compares and self._good[slot] and key not in self._store_of:  # one comparison at a time
                compared.append(len(chosen))
                self._index.hold(slot)  # or the rest of the chain might make room of it
            else:
                continue
            chosen.append(key)
            slots.append(slot)
        self._contents.note_evicted(evicted)
        return chosen, slots, compared

    def end_store(self, keys: Collection[Key]) -> int:
        """All ranks hold the bytes, or reported a failure before: readable from now on. Returns how many are."""
        stored = 0
        tickets = {self._store_of.pop(key) for key in keys}
        for ticket in tickets:  # one
            transfer = self._running.pop(ticket).transfer
            self._index.release(transfer.slots, State.READY)
            fresh = [position for position in range(len(transfer.keys)) if position not in transfer.compared]
            stored += self._arrived(transfer, fresh, again=False)
        self._contents.counts["chunks stored"] += stored
        return stored

    # ---- failures ----------------------------------------------------------------------------------------

    def failed(self, ticket: Ticket, positions: Set[int], lost: Set[int]) -> None:
        """A rank could not read or write these keys of a transfer; all but the ``lost`` ones only came too late. Tickets from
        before a reset are nobody's."""
        running = self._running.get(ticket)
        if running is None:
            return
        transfer = running.transfer
        running.failed = True
        for position in positions:
            self._contents.lose(transfer.keys[position], transfer.slots[position])
        for lower in self._contents.secondaries:
            fetches = transfer.fetches(lower.tier)
            for position in fetches.keys() & positions:
                key = transfer.keys[position]
                if lower.lose(key, fetches[position], late=position not in lost):
                    self._contents.events.removed(lower.tier, [key])
        if transfer.kind is Kind.LOAD and not running.counted:
            running.counted = True
            self._lookups.load_failed(transfer.req_id)

    def forget_request(self, req_id: str) -> None:
        """The request is finished; its load, if any, still ends through :meth:`end_load`."""
        self._tails.pop(req_id, None)
        running = self._running.get(self._load_of.get(req_id, 0))
        if running is not None:
            running.counted = True  # or a failure that comes now would be remembered for ever

    def reset(self) -> None:
        """All transfers are nobody's from now on."""
        self._running.clear()
        self._contents.loading.clear()
        self._contents.watchdog.reset()
        self._load_of.clear()
        self._store_of.clear()
