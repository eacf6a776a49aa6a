"""Decisions of the scheduler's half, in vLLM's terms but without vLLM: lookups, loads, stores, failures.

All methods run on the scheduler's thread; nothing is locked and nothing waits. The slot index decides about memory, `DiskIndex`
about the slabs, `Presence` knows about the remote store, `Admission` says whether a hit is worth loading, `Spills` writes down.
This module joins them and keeps the tickets of running transfers.

A prompt of 128K tokens has up to 8000 keys, and all its lookups together may take a few milliseconds: hence the local names and
the arrays by slot instead of objects.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Collection, Sequence

from kvpool_connector.log import get_logger
from kvpool_connector.scheduler.admission import Admission
from kvpool_connector.scheduler.disk import DiskIndex
from kvpool_connector.scheduler.events import Events
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.scheduler.spills import DiskTarget, RemoteTarget, Spills, Target, WritePolicy
from kvpool_connector.scheduler.verify import Verification
from kvpool_connector.scheduler.waiting import WaitingRequests
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import SlotIndex, State
from kvpool_connector.transfer import Kind, Orders, Probe, Reports, Ticket, Tier, Transfer

logger = get_logger(__name__)

MAX_FAILED_LOADS = 2
"""After so many failed loads a request is computed. Ends the loop of lookup, load, failure, lookup."""
_REMOTE = -1
"""In place of a slab's slot: the bytes come from the remote store."""


class Lookup(enum.IntEnum):
    """vLLM's answers, see ``LookupResult`` in vllm/v1/kv_offload/base.py."""

    MISS = 0
    HIT = 1
    PENDING = 2  # being fetched for another request: certain to end by the fetch deadline
    RETRY = 3  # the remote store was asked: certain to end by the lookup deadline


@dataclasses.dataclass(frozen=True, slots=True)
class Lower:
    """The tiers below memory, as far as they are configured."""

    disk: DiskIndex | None = None
    disk_policy: WritePolicy = "write_through"
    presence: Presence | None = None
    remote_policy: WritePolicy = "write_through"
    fetch_s: float = 5.0
    """The longest a fetch may take."""


@dataclasses.dataclass(slots=True)
class _Running:
    transfer: Transfer
    generation: int = 0
    """Of the remote store when the transfer began."""
    counted: bool = False
    """A failed load counts once, and not at all if its request is finished."""


class Pool:
    """Index of keys over numbered slots. Owns the slot numbers; the bytes belong to the ranks' arenas and slabs."""

    def __init__(
        self,
        index: SlotIndex,
        world_size: int,
        lower: Lower,
        admission: Admission,
        events: Events,
        verification: Verification | None = None,
    ) -> None:
        self.index, self.admission, self.events = index, admission, events
        self.disk, self._presence, self._verification = lower.disk, lower.presence, verification
        self._fetch_s = lower.fetch_s
        targets: list[Target] = []
        if lower.disk is not None:
            targets.append(DiskTarget(lower.disk, lower.disk_policy))
        if lower.presence is not None:
            targets.append(RemoteTarget(lower.presence, index, lower.remote_policy))
        self.spills = Spills(index, targets, world_size, self._issue)
        self._find, self._good = index.find, index.good
        self.promised: list[int] = []
        """Slots of this step's hits in memory; see :meth:`_reserve`."""
        self.exceptional = verification is not None
        """Some lookup may need more than a look into the index; False allows the shortcut of `fast_lookup`."""
        self._running: dict[Ticket, _Running] = {}
        self._load_of: dict[str, Ticket] = {}  # vLLM runs at most one load per request
        self._store_of: dict[Key, Ticket] = {}  # while the store runs
        self._reserved: dict[int, int] = {}  # this step's promises: where the bytes of an empty slot are
        self._tails: dict[str, tuple[Key, int]] = {}  # where the part of a request's chain ends that was offered so far
        self._failed_loads: Counter[str] = Counter()
        self._waiting = WaitingRequests()
        self._checked = False  # for answers, in this step
        self._last_ticket: Ticket = 0
        self._probes: list[Probe] = []
        self.broken = ""
        """Why nothing is loaded or stored any more; empty while all is well."""
        self.counts: Counter[str] = Counter()
        """What happened, for metrics; the owner takes and clears it."""

    # ---- lookup ------------------------------------------------------------------------------------------

    def lookup(self, key: Key, req_id: str) -> Lookup:
        """HIT promises a slot until the end of this scheduling step, because a load that follows cannot be refused.

        vLLM begins the load in the same step or not at all; in the latter case it looks up again. A pending store is a
        MISS: waiting for it may take longer than computing.
        """
        if self.exceptional and (answer := self._exception(key, req_id)) is not None:
            return answer
        slot = self._find(key)
        if slot is None:
            answer = self._lookup_lower(key)
        elif self._good[slot]:
            if self._verification is not None and self._verification.picks(req_id):
                return Lookup.MISS
            self.promised.append(slot)
            return Lookup.HIT
        else:
            answer = self._lookup_busy(slot)
        if answer >= Lookup.PENDING:
            self._waiting.add(req_id)
            self.exceptional = True
        return answer

    def _is_exceptional(self) -> bool:
        return bool(self._waiting or self._failed_loads or self.broken or self._verification)

    def _exception(self, key: Key, req_id: str) -> Lookup | None:
        """An answer that does not depend on where the key is."""
        if self.broken or (self._failed_loads and self._failed_loads.get(req_id, 0) >= MAX_FAILED_LOADS):
            return Lookup.MISS
        if not self._checked:
            self._checked = True
            answered = self._presence is not None and self._presence.take_answers()
            if self.admission.first_probe_over() or answered:
                self._waiting.changed()
        retry = self._waiting.cut_short(req_id, key[-4:])
        return None if retry is None else Lookup.RETRY if retry else Lookup.MISS

    def _lookup_lower(self, key: Key) -> Lookup:
        if self.disk is not None and (disk_slot := self.disk.find(key)) is not None:
            return self._admit(Tier.DISK, key, disk_slot)
        present = False if self._presence is None else self._presence.ask(key)
        if present is None:
            return Lookup.RETRY
        return self._admit(Tier.REMOTE, key, _REMOTE) if present else Lookup.MISS

    def _lookup_busy(self, slot: int) -> Lookup:
        state = self.index.state[slot]
        if state == State.RESERVED:
            return Lookup.HIT
        return Lookup.PENDING if state == State.FETCHING else Lookup.MISS  # two fetches must not share a slot

    def _admit(self, tier: Tier, key: Key, source: int) -> Lookup:
        """A tier below memory has the key: load it?"""
        unmeasured, allowed = self.admission.unmeasured(tier), self.admission.allows(tier)
        if (unmeasured or not allowed) and self.admission.wants_probe(tier):
            self._probes.append(Probe(tier, key, source))
        if unmeasured:
            return Lookup.RETRY
        if not allowed:
            self.counts[f"{tier.value} hit not admitted"] += 1
            return Lookup.MISS
        return self._reserve(key, source)

    def _reserve(self, key: Key, source: int) -> Lookup:
        for promised in self.promised:  # only now, since holding each slot at each hit would double a lookup's cost
            self.index.hold(promised)
        self.promised.clear()
        evicted: list[tuple[Key, int]] = []
        slot = self.index.add(key, State.RESERVED, evicted)
        self._note_evicted(evicted)
        if slot is None:
            self.counts["no slot for a hit"] += 1
            return Lookup.MISS
        self._reserved[slot] = source
        self.index.hold(slot)
        return Lookup.HIT

    def tier_of(self, key: Key) -> Tier:
        """Where a key that was a HIT is loaded from."""
        slot = self._find(key)
        if slot is None or (source := self._reserved.get(slot, None)) is None:
            return Tier.MEMORY
        return Tier.REMOTE if source == _REMOTE else Tier.DISK

    def end_step(self) -> None:
        """End of a scheduling step: promises lapse, and the step's questions go out as one batch."""
        self.index.end_step()
        self._reserved.clear()
        self.promised.clear()
        self.exceptional = self._is_exceptional()
        self._waiting.next_step()
        self._checked = False
        if self.disk is not None:
            self.disk.end_step()
        if self._presence is not None:
            self._presence.flush()
        if not self.broken:
            self.spills.make_room()

    def take_orders(self) -> Orders:
        """What the ranks have to do beside vLLM's jobs. Called when the step's stores are known."""
        spills, evicted = self.spills.issue()
        for tier, key in evicted:
            self.events.removed(tier, [key])
        probes, self._probes = self._probes, []
        return Orders(tuple(spills), tuple(probes))

    # ---- loads -------------------------------------------------------------------------------------------

    def begin_load(self, keys: Sequence[Key], req_id: str) -> Transfer:
        """Pin the slots until :meth:`end_load`. Every key was a HIT in this step."""
        slots: list[int] = [self._find(key) for key in keys]  # type: ignore[misc]
        from_disk: list[tuple[int, int]] = []
        from_remote: list[int] = []
        if self._reserved:
            for position, slot in enumerate(slots):
                source = self._reserved.pop(slot, None)
                if source is None:
                    continue
                self.index.set_state(slot, State.FETCHING)
                if source == _REMOTE:
                    from_remote.append(position)
                else:
                    from_disk.append((position, source))
            if from_disk:
                assert self.disk is not None
                self.disk.pin([slot for _, slot in from_disk])
        self.index.pin(slots)
        self.index.touch(slots, new_request=False)  # counted when the request's blocks are offered for storing
        fetched = len(from_disk) + len(from_remote)
        self.counts["chunks loaded from memory"] += len(keys) - fetched
        self.counts["chunks loaded from disk"] += len(from_disk)
        self.counts["chunks loaded from remote"] += len(from_remote)
        budget = self.admission.fetch_budget_s(fetched, self._fetch_s) if fetched else 0.0
        transfer = Transfer(
            Kind.LOAD, self._issue(), req_id, tuple(keys), tuple(slots), tuple(from_disk), tuple(from_remote), budget
        )
        self._running[transfer.ticket] = _Running(transfer, self._presence.generation if self._presence else 0)
        self._load_of[req_id] = transfer.ticket
        return transfer

    def end_load(self, req_id: str) -> None:
        """All ranks ended the load; what failed was reported before, through :meth:`on_reports`."""
        running = self._running.pop(self._load_of.pop(req_id))
        transfer = running.transfer
        fetched = [position for position, _ in transfer.from_disk] + list(transfer.from_remote)
        for position in transfer.from_remote:
            self.index.tag[transfer.slots[position]] = running.generation
        if transfer.from_disk:
            assert self.disk is not None
            self.disk.release([slot for _, slot in transfer.from_disk])
        self.index.release(transfer.slots, State.READY)
        if fetched:
            self._waiting.changed()
            held = [position for position in fetched if self._holds(transfer, position)]
            self.events.stored(Tier.MEMORY, [transfer.keys[p] for p in held])
            self._offer(transfer, held, again=True)

    def _offer(self, transfer: Transfer, positions: Sequence[int], *, again: bool) -> None:
        """Let the lower tiers have what they lack of a transfer's rows."""
        if self.spills.wanted and not self.broken:
            keys, slots = transfer.keys, transfer.slots
            self.spills.offer([keys[p] for p in positions], [slots[p] for p in positions], again=again)

    def _holds(self, transfer: Transfer, position: int) -> bool:
        """Whether an ended transfer's row is still its key's, and good."""
        slot = transfer.slots[position]
        return bool(self._good[slot]) and self._find(transfer.keys[position]) == slot

    # ---- stores ------------------------------------------------------------------------------------------

    def begin_store(self, keys: Sequence[Key], req_id: str) -> Transfer:
        """Give slots to keys that have none, as many as there are, in the order of ``keys``.

        Returns:
            the transfer, perhaps of no keys: vLLM then throws it away and never completes it.
        """
        nothing = Transfer(Kind.STORE, 0, req_id, (), ())
        if self.broken:
            return nothing
        find, good = self._find, self._good
        resident = [slot for key in keys if (slot := find(key)) is not None and good[slot]]
        compares = self._verification is not None and self._verification.is_picked(req_id)
        if resident and not compares and self.spills.wanted:
            self.spills.offer([self.index.key(slot) for slot in resident], resident, again=True)
        if len(resident) == len(keys) and not compares:
            self._touch_chain(resident, req_id)
            return nothing
        self.index.touch(resident, new_request=False)  # first, so that a chain is not evicted for its own tail
        chosen, slots, compared = self._choose(keys, compares=compares)
        self._touch_chain([slot for key in keys if (slot := find(key)) is not None], req_id)
        if not chosen:
            return nothing
        transfer = Transfer(
            Kind.STORE, self._issue(), req_id, tuple(chosen), tuple(slots), compared=frozenset(compared)
        )
        self.index.pin(slots)
        self._running[transfer.ticket] = _Running(transfer)
        self._store_of.update(dict.fromkeys(chosen, transfer.ticket))
        return transfer

    def _touch_chain(self, chain: Sequence[int], req_id: str) -> None:
        """A further part of the request's chain was used: it belongs behind the part before it."""
        if not chain:
            return
        tail = self._tails.get(req_id)
        after = None if tail is None or self._find(tail[0]) != tail[1] else tail[1]
        self.index.touch(chain, after=after)
        self._tails[req_id] = (self.index.key(chain[-1]), chain[-1])

    def _choose(self, keys: Sequence[Key], *, compares: bool) -> tuple[list[Key], list[int], list[int]]:
        """Keys to store, their slots, and which positions hold the block already and are compared."""
        chosen: list[Key] = []
        slots: list[int] = []
        compared: list[int] = []
        evicted: list[tuple[Key, int]] = []
        for key in keys:
            slot = self._find(key)
            if slot is None:
                slot = self.index.add(key, State.STORING, evicted)
                if slot is None:
                    self.counts["no slot for a store"] += 1
                    break
            elif compares and self._good[slot] and key not in self._store_of:  # one comparison at a time
                compared.append(len(chosen))
                self.index.hold(slot)  # or the rest of the chain might make room of it
            else:
                continue
            chosen.append(key)
            slots.append(slot)
        self._note_evicted(evicted)
        return chosen, slots, compared

    def end_store(self, keys: Collection[Key]) -> None:
        """All ranks hold the bytes, or reported a failure before: readable from now on."""
        tickets = {self._store_of.pop(key) for key in keys}
        for ticket in tickets:  # one
            transfer = self._running.pop(ticket).transfer
            self.index.release(transfer.slots, State.READY)
            stored = [
                position
                for position in range(len(transfer.keys))
                if position not in transfer.compared and self._holds(transfer, position)
            ]
            self.counts["chunks stored"] += len(stored)
            self.events.stored(Tier.MEMORY, [transfer.keys[position] for position in stored])
            self._offer(transfer, stored, again=False)

    # ---- reports of the ranks ----------------------------------------------------------------------------

    def on_reports(self, reports: Reports) -> None:
        """Take failures and ended spills.

        Must be called BEFORE vLLM sees the completions of the same worker output, so that :meth:`end_load` and
        :meth:`end_store` already know what failed.
        """
        for ticket, positions in reports.failed.items():
            running = self._running.get(ticket)
            if running is not None:  # else from before a reset
                self._on_failed(running, positions)
        for ticket, positions in reports.differed.items():
            if ticket in self._running:
                self._on_difference(len(positions))
        for ticket, ranks in reports.spilled.items():
            stale = self.spills.is_stale(ticket)
            spill = self.spills.on_report(ticket, ranks)
            if spill is None:
                continue
            if stale and self.disk is not None:
                self.disk.give_back(spill.disk_slots)
            elif not stale:
                self.events.stored(spill.tier, spill.keys)
        for sample in reports.samples:
            self.admission.read(sample.tier, sample.nbytes, sample.seconds)
        self.counts.update(reports.counts)
        if reports.broken:
            self.close_down(reports.broken)
        if reports:
            self._waiting.changed()

    def _on_failed(self, running: _Running, positions: Collection[int]) -> None:
        transfer = running.transfer
        disk_slots = dict(transfer.from_disk)
        for position in positions:
            key, slot = transfer.keys[position], transfer.slots[position]
            if self._find(key) == slot:
                if self._good[slot]:
                    self.events.removed(Tier.MEMORY, [key])
                self.index.condemn(slot)
            if position in disk_slots:
                if self.disk is not None and self.disk.forget(key, disk_slots[position]):
                    self.events.removed(Tier.DISK, [key])
            elif self._presence is not None:
                self._presence.believe(key, False)
        if transfer.kind is Kind.LOAD and not running.counted:
            running.counted = True
            self._failed_loads[transfer.req_id] += 1
            self.exceptional = True

    def _on_difference(self, count: int) -> None:
        """What was computed is not what memory held for the same tokens: nothing that is cached can be trusted, or given to
        other engines."""
        self.counts["verification mismatch"] += count
        self.close_down(f"verification: {count} recomputed chunks differ from the cached ones")

    def close_down(self, why: str) -> None:
        """Answer every lookup with a miss and store nothing, until :meth:`reset`. Says so, loudly."""
        if not self.broken:
            self.broken, self.exceptional = why, True
            self.spills.forget_waiting()
            logger.error(
                "kvpool loads and stores nothing from now on: %s. Resetting the external cache starts anew", why
            )

    # ---- life cycle --------------------------------------------------------------------------------------

    def forget_request(self, req_id: str) -> None:
        """The request is finished; its load, if any, still ends through :meth:`end_load`."""
        self._failed_loads.pop(req_id, None)
        self._tails.pop(req_id, None)
        self._waiting.forget(req_id)
        if self._verification is not None:
            self._verification.forget(req_id)
        running = self._running.get(self._load_of.get(req_id, 0))
        if running is not None:
            running.counted = True  # or a failure that comes now would be remembered for ever

    @property
    def store_reachable(self) -> bool | None:
        """Whether the remote store answered last time; None without one."""
        return None if self._presence is None else self._presence.reachable

    @property
    def counted(self) -> bool:
        """Whether there are counts that nobody took yet."""
        return bool(self.counts or self.spills.counts)

    @property
    def busy(self) -> bool:
        """Only engine steps bring spills and probes to their end."""
        return self.spills.busy or bool(self._probes)

    def reset(self) -> None:
        """Forget every key in memory and on disk; the remote store keeps its parts, other engines use them.

        vLLM makes the ranks wait for running loads and stores before a slot is used again; spills are not vLLM's, so their
        rows stay taken until the ranks report them.
        """
        running = self.spills.reset()
        self._running.clear()
        self._load_of.clear()
        self._store_of.clear()
        self._reserved.clear()
        self.events.removed(Tier.MEMORY, [key for key, slot in self.index if self._good[slot]])
        self.index.clear(keep=[slot for spill in running for slot in spill.slots])
        if self.disk is not None:
            self.events.removed(Tier.DISK, self.disk.keys())
            self.disk.clear(writing=[slot for spill in running for slot in spill.disk_slots])
        if self._presence is not None:
            self._presence.forget()
        self._waiting.changed()
        self.broken = ""

    def close(self) -> None:
        """End the threads of presence and journal."""
        if self._presence is not None:
            self._presence.close()
        if self.disk is not None:
            self.disk.close()

    def _note_evicted(self, evicted: Sequence[tuple[Key, int]]) -> None:
        if evicted:
            self.counts["memory evicted"] += len(evicted)
            self.events.removed(Tier.MEMORY, [key for key, _ in evicted])

    def _issue(self) -> Ticket:
        self._last_ticket += 1
        return self._last_ticket
