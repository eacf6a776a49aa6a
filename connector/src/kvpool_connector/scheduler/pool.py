"""Decisions of the scheduler's half, in vLLM's terms but without vLLM: lookups, loads, stores, failures.

All methods run on the scheduler's thread; nothing is locked and nothing waits. The slot index decides about memory, `Presence`
about the remote store; this module joins the two and keeps the tickets of running transfers.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Collection, Sequence

from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.tiers.slots import Key, SlotIndex, State
from kvpool_connector.transfer import Kind, Reports, Ticket, Transfer

MAX_FAILED_LOADS = 2
"""After so many failed loads a request is computed. Ends the loop of lookup, load, failure, lookup."""


class Lookup(enum.Enum):
    """vLLM's answers, see ``LookupResult`` in vllm/v1/kv_offload/base.py."""

    HIT = "hit"
    MISS = "miss"
    PENDING = "pending"  # being fetched for another request: certain to end by the fetch deadline
    RETRY = "retry"  # the remote store was asked: certain to end by the lookup deadline


@dataclasses.dataclass(slots=True)
class _Running:
    transfer: Transfer
    counted: bool = False
    """A failed load counts once, and not at all if its request is finished."""
    puts_pending: int = 0
    """Ranks that have not yet reported the end of this store's put."""
    put_failed: set[int] = dataclasses.field(default_factory=set)
    generation: int = 0
    """Of the remote store when the put was asked for."""


class Pool:
    """Index of keys over numbered slots. Owns the slot numbers; the bytes belong to the ranks' arenas."""

    def __init__(self, slots: int, world_size: int, presence: Presence | None) -> None:
        self.index = SlotIndex(slots)
        self._world_size = world_size
        self._presence = presence
        self._running: dict[Ticket, _Running] = {}
        self._draining: dict[Ticket, list[int]] = {}  # puts that outlive a reset: their slots, and ranks to wait for
        self._draining_ranks: Counter[Ticket] = Counter()
        self._load_of: dict[str, Ticket] = {}  # vLLM runs at most one load per request
        self._failed_loads: Counter[str] = Counter()
        self._last_ticket: Ticket = 0

    # ---- lookup ------------------------------------------------------------------------------------------

    def lookup(self, key: Key, req_id: str) -> Lookup:
        """HIT promises a slot until the end of this scheduling step, because a load that follows cannot be refused.

        vLLM begins the load in the same step or not at all; in the latter case it looks up again. A pending store is a
        MISS: waiting for it may take longer than computing.
        """
        if self._failed_loads[req_id] >= MAX_FAILED_LOADS:
            return Lookup.MISS
        entry = self.index.get(key)
        if entry is None:
            present = self._presence.ask(key) if self._presence else False
            if present is None:
                return Lookup.RETRY
            if not present or self.index.add(key, State.RESERVED) is None:
                return Lookup.MISS
        elif entry.bad or entry.state is State.STORING:
            return Lookup.MISS
        elif entry.state is State.FETCHING:
            return Lookup.PENDING  # two fetches must not share a slot
        self.index.hold(key)
        return Lookup.HIT

    def is_remote(self, key: Key) -> bool:
        """Whether a HIT on this key would be served by the remote store."""
        entry = self.index.get(key)
        return entry is not None and entry.state in (State.RESERVED, State.FETCHING)

    def end_step(self) -> None:
        """End of a scheduling step: promises lapse, and the step's questions go out as one batch."""
        self.index.end_step()
        if self._presence:
            self._presence.flush()

    # ---- loads -------------------------------------------------------------------------------------------

    def begin_load(self, keys: Sequence[Key], req_id: str) -> Transfer:
        """Pin the slots until :meth:`end_load`. Every key was a HIT in this step."""
        fetch: list[bool] = []
        slots: list[int] = []
        for key in keys:
            entry = self.index[key]
            entry.refs += 1
            fetch.append(entry.state is State.RESERVED)
            if entry.state is State.RESERVED:
                entry.state = State.FETCHING
                entry.remote = self._generation
            slots.append(entry.slot)
        self.index.touch(reversed(keys))
        transfer = Transfer(Kind.LOAD, self._issue(), req_id, tuple(keys), tuple(slots), tuple(fetch))
        self._running[transfer.ticket] = _Running(transfer)
        self._load_of[req_id] = transfer.ticket
        return transfer

    def end_load(self, keys: Collection[Key], req_id: str) -> None:
        """All ranks ended the load; what failed was reported before, through :meth:`on_reports`."""
        self._running.pop(self._load_of.pop(req_id), None)
        for key in keys:
            self.index.release(key, now=State.READY)

    # ---- stores ------------------------------------------------------------------------------------------

    def begin_store(self, keys: Sequence[Key], req_id: str) -> tuple[Transfer, list[Key]]:
        """Give slots to keys that have none, as many as there are, in the order of ``keys``.

        A resident block that the remote store does not hold (it was away, or the put was dropped) is stored once more into
        its own slot: that brings it back for the other engines without a second mechanism.

        Returns:
            the transfer, perhaps of no keys, and the keys that were evicted for it.
        """
        put = self._presence is not None and self._presence.reachable
        self.index.touch(reversed(keys))  # before slots are taken, so that a chain is not evicted for its own tail
        chosen: list[Key] = []
        slots: list[int] = []
        evicted: list[Key] = []
        for key in keys:
            entry = self.index.get(key)
            if entry is None:
                entry = self.index.add(key, State.STORING, evicted)
                if entry is None:
                    break
            elif put and entry.evictable and entry.remote != self._generation:
                entry.state = State.STORING
            else:
                continue
            entry.refs += 2 if put else 1  # one for the store, one for the put that reads the slot afterwards
            chosen.append(key)
            slots.append(entry.slot)
        transfer = Transfer(Kind.STORE, self._issue(), req_id, tuple(chosen), tuple(slots), put=put)
        if chosen:  # vLLM throws an empty store away and never completes it
            self._running[transfer.ticket] = _Running(
                transfer, puts_pending=self._world_size if put else 0, generation=self._generation
            )
            for key in chosen:
                self.index[key].ticket = transfer.ticket
            self.index.touch(reversed(chosen))
        return transfer, evicted

    def end_store(self, keys: Collection[Key]) -> None:
        """All ranks hold the bytes, or reported a failure before: readable from now on."""
        for key in keys:
            entry = self.index[key]  # the store held a reference
            running = self._running.get(entry.ticket)
            if running is not None and not running.transfer.put:  # else the end of the put ends the ticket
                del self._running[entry.ticket]
            self.index.release(key, now=State.READY)

    # ---- reports of the ranks ----------------------------------------------------------------------------

    def on_reports(self, reports: Reports) -> None:
        """Take failures and ended puts.

        Must be called BEFORE vLLM sees the completions of the same worker output, so that :meth:`end_load` and
        :meth:`end_store` already know what failed.
        """
        for ticket, positions in reports.failed.items():
            running = self._running.get(ticket)
            if running is not None:  # else from before a reset
                self._on_failed(running, positions)
        for ticket, ranks in reports.puts.items():
            if ticket in self._draining:
                self._on_drained(ticket, len(ranks))
            elif ticket in self._running:
                self._on_put(ticket, ranks)

    def _on_failed(self, running: _Running, positions: Collection[int]) -> None:
        transfer = running.transfer
        for position in positions:
            key = transfer.keys[position]
            entry = self.index.get(key)
            if entry is not None:
                entry.bad = True
            if self._presence:
                self._presence.believe(key, False)
        if transfer.kind is Kind.LOAD and not running.counted:
            running.counted = True
            self._failed_loads[transfer.req_id] += 1

    def _on_put(self, ticket: Ticket, ranks: Sequence[set[int]]) -> None:
        running = self._running[ticket]
        running.puts_pending -= len(ranks)
        running.put_failed.update(*ranks)
        if running.puts_pending:
            return
        del self._running[ticket]
        for position, key in enumerate(running.transfer.keys):
            entry = self.index[key]  # the put held a reference
            if position not in running.put_failed:
                entry.remote = running.generation
            self.index.release(key)

    def _on_drained(self, ticket: Ticket, ranks: int) -> None:
        self._draining_ranks[ticket] -= ranks
        if self._draining_ranks[ticket] == 0:
            del self._draining_ranks[ticket]
            self.index.give_back(self._draining.pop(ticket))

    # ---- life cycle --------------------------------------------------------------------------------------

    def forget_request(self, req_id: str) -> None:
        """The request is finished; its load, if any, still ends through :meth:`end_load`."""
        self._failed_loads.pop(req_id, None)
        running = self._running.get(self._load_of.get(req_id, 0))
        if running is not None:
            running.counted = True  # or a failure that comes now would be remembered for ever

    @property
    def busy(self) -> bool:
        """Puts are running: only an engine step brings the report that frees their slots."""
        return bool(self._draining) or any(running.puts_pending for running in self._running.values())

    def reset(self) -> None:
        """Forget every key. vLLM makes the ranks wait for running loads and stores before a slot is used again; puts are
        not vLLM's, so their slots stay taken until the ranks report them."""
        for ticket, running in self._running.items():
            if running.puts_pending:
                self._draining[ticket] = list(running.transfer.slots)
                self._draining_ranks[ticket] = running.puts_pending
        self._running.clear()
        self._load_of.clear()
        self.index.clear(keep=[slot for slots in self._draining.values() for slot in slots])
        if self._presence:
            self._presence.forget()

    def close(self) -> None:
        """End the presence thread."""
        if self._presence:
            self._presence.close()

    @property
    def _generation(self) -> int:
        return self._presence.generation if self._presence else 0

    def _issue(self) -> Ticket:
        self._last_ticket += 1
        return self._last_ticket
