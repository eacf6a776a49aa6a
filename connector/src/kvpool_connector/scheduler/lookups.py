"""Is there a key, and may it be loaded? Promises of this scheduling step, and who waits for an answer.

A prompt of 128K tokens has up to 8000 keys, and all its lookups together may take a few milliseconds: hence the local names,
the arrays by slot instead of objects, and the one flag that says whether anything but memory must be looked at.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping

from kvpool_connector.scheduler.contents import Contents
from kvpool_connector.scheduler.engine_view import EngineView, IdleEngine
from kvpool_connector.scheduler.secondary.base import ABSENT, ASKED
from kvpool_connector.scheduler.verify import Verification
from kvpool_connector.scheduler.waiting import WaitingRequests
from kvpool_connector.tiers.keymap import Key
from kvpool_connector.tiers.slots import State
from kvpool_connector.transfer import Probe, Tier

MAX_FAILED_LOADS = 2
"""After so many failed loads a request is computed. Ends the loop of lookup, load, failure, lookup."""
ALL_TIERS = frozenset(Tier)


class Lookup(enum.IntEnum):
    """vLLM's answers, see ``LookupResult`` in vllm/v1/kv_offload/base.py."""

    MISS = 0
    HIT = 1
    PENDING = 2  # being fetched for another request: certain to end by the fetch deadline
    RETRY = 3  # the remote store was asked: certain to end by the lookup deadline


class Lookups:
    """Answers, and what was promised by them. One thread."""

    def __init__(self, contents: Contents, verification: Verification | None) -> None:
        self._contents, self._verification = contents, verification
        self._windows: Mapping[bytes, int] = {}
        self._index = contents.index
        self._find, self._good = contents.index.find, contents.index.good
        self.promised: list[int] = []
        """Slots of this step's hits in memory; see :meth:`_reserve`."""
        self.exceptional = verification is not None
        """Some lookup may need more than a look into the index; False allows the shortcut of `PoolLookup`."""
        self.reserved: dict[int, tuple[Tier, int]] = {}
        """This step's promises: where the bytes of an empty slot are, a tier and a place in it."""
        self.failed_loads: Counter[str] = Counter()
        self._tiers: dict[str, frozenset[Tier]] = {}  # of requests that may load from some only
        self.waiting = WaitingRequests()
        self._checked = False  # for answers, in this step
        self.engine: EngineView = IdleEngine()
        """The engine as the last scan saw it."""
        self._scanned_to = 0
        self._scanned_from = 0  # `promised` at the scan's beginning; -1: something else was found in it
        self._scanned_chunks = 0
        self._pays: dict[Tier, bool] = {}  # for the request that is scanned
        self._unexceptional = ""  # the request of which it is known, in this step
        self.probes: list[Probe] = []

    def set_windows(self, windows: Mapping[bytes, int]) -> None:
        """Told once by who knows the engine: its KV groups with a sliding window, by the last four bytes of their keys, and how
        many keys in a row a request needs of them at most."""
        self._windows = windows

    def scan_begins(self, chunks: int, engine: EngineView) -> None:
        """The next lookups are of a request that has so many chunks beyond those on the device."""
        self.engine = engine
        self._scanned_chunks = chunks
        self._scanned_from = len(self.promised)
        self._scanned_to = self._scanned_from + chunks
        self._pays.clear()

    def restrict(self, req_id: str, tiers: frozenset[Tier]) -> None:
        """A new request may load from these tiers only."""
        self._tiers[req_id] = tiers
        self.exceptional = True

    def allows(self, req_id: str, tier: Tier) -> bool:
        """Return whether the request may load from the tier."""
        return tier in self._tiers.get(req_id, ALL_TIERS)

    def lookup(self, key: Key, req_id: str) -> Lookup:
        """HIT promises a slot until the end of this scheduling step, because a load that follows cannot be refused.

        vLLM begins the load in the same step or not at all; in the latter case it looks up again. A pending store is a
        MISS: waiting for it may take longer than computing.
        """
        if self.exceptional and (req_id != self._unexceptional or self._contents.broken):
            if (answer := self._exception(key, req_id)) is not None:
                return answer
            self._unexceptional = req_id
        slot = self._find(key)
        tiers = self._tiers.get(req_id, ALL_TIERS) if self._tiers else ALL_TIERS
        if slot is None:
            answer = self._lookup_lower(key, req_id, tiers)
        elif tiers is not ALL_TIERS and self.tier_of(key) not in tiers:
            return Lookup.MISS
        elif self._good[slot]:
            if self._verification is not None and self._verification.picks(req_id):
                return Lookup.MISS
            self.promised.append(slot)
            return Lookup.HIT
        else:
            answer = self._lookup_busy(slot)
            if answer is not Lookup.MISS:
                self._scanned_from = -1
        if answer >= Lookup.PENDING:
            self.waiting.add(req_id)
            self.exceptional = True
        return answer

    def tier_of(self, key: Key) -> Tier:
        """Where a key that was a HIT is loaded from."""
        slot = self._find(key)
        if slot is None or (source := self.reserved.get(slot)) is None:
            return Tier.MEMORY
        return source[0]

    def take_source(self, slot: int) -> tuple[Tier, int]:
        """Where the bytes of a promised slot are, and the place in that tier. The promise is kept by this."""
        return self.reserved.pop(slot, (Tier.MEMORY, 0))

    def load_failed(self, req_id: str) -> None:
        """A request's load failed: the second one is its last."""
        self.failed_loads[req_id] += 1
        self.exceptional = True
        self._unexceptional = ""

    def give_up(self, req_id: str) -> None:
        """The request has waited for too long: it is computed, whatever is found out meanwhile."""
        self.failed_loads[req_id] = MAX_FAILED_LOADS
        self.waiting.forget(req_id)
        self.exceptional = True
        self._unexceptional = ""

    def forget(self, req_id: str) -> None:
        """The request is finished."""
        self.failed_loads.pop(req_id, None)
        self._tiers.pop(req_id, None)
        self.waiting.forget(req_id)
        if self._verification is not None:
            self._verification.forget(req_id)

    def end_step(self) -> None:
        """End of a scheduling step: promises lapse, and the step's questions go out as one batch."""
        self._index.end_step()
        self.reserved.clear()
        self.promised.clear()
        never = self._contents.broken or self._contents.watchdog.stuck
        self.exceptional = bool(self.waiting or self.failed_loads or self._tiers or never or self._verification)
        self.waiting.next_step()
        self._checked = False
        self._unexceptional = ""
        self._pays.clear()
        for lower in self._contents.secondaries:
            lower.end_step()
            self._contents.counts.update(lower.take_counts())

    def _exception(self, key: Key, req_id: str) -> Lookup | None:
        """An answer that does not depend on where the key is."""
        if self._contents.broken or self._contents.watchdog.stuck:
            return Lookup.MISS
        if self.failed_loads and self.failed_loads.get(req_id, 0) >= MAX_FAILED_LOADS:
            return Lookup.MISS
        if not self._checked:
            self._checked = True
            for lower in self._contents.secondaries:
                self.waiting.answered(lower.take_answers())
            if self._contents.admission.ends_wait():
                self.waiting.changed()
        retry = self.waiting.cut_short(req_id, key[-4:])
        return None if retry is None else Lookup.RETRY if retry else Lookup.MISS

    def _lookup_lower(self, key: Key, req_id: str, tiers: frozenset[Tier]) -> Lookup:
        at_head = len(self.promised) == self._scanned_from
        window = self._windows.get(key[-4:]) if self._windows else None
        for lower in self._contents.secondaries:
            if lower.tier not in tiers:
                continue
            place = lower.find(key, req_id, window, at_head)
            if place == ABSENT:
                continue
            if place == ASKED:
                answer = self._wait_or_compute(lower.tier)
                if answer is Lookup.RETRY:
                    self.waiting.add(req_id, asked=True)
            else:
                answer = self._admit(lower.tier, key, place)
            if answer is not Lookup.MISS:
                return answer
        return Lookup.MISS

    def _wait_or_compute(self, tier: Tier) -> Lookup:
        """The tier was asked. What comes before this key in its request was promised, so the rest is what may be gained."""
        chunks = max(self._scanned_to - len(self.promised), 1)
        admission = self._contents.admission
        if not admission.uses_answer(tier):
            self._contents.counts["closed store not waited for"] += 1
            return Lookup.MISS
        if admission.worth_asking(chunks) or not self.engine.others_run():
            return Lookup.RETRY
        self._contents.counts["answer not waited for"] += 1
        return Lookup.MISS

    def _lookup_busy(self, slot: int) -> Lookup:
        state = self._index.state[slot]
        if state == State.RESERVED:
            return Lookup.HIT
        return Lookup.PENDING if state == State.FETCHING else Lookup.MISS  # two fetches must not share a slot

    def _admit(self, tier: Tier, key: Key, place: int) -> Lookup:
        """A tier below memory has the key: load it?"""
        admission = self._contents.admission
        awaits, allowed = admission.awaits_measurement(tier), admission.allows(tier)
        if (awaits or not allowed) and admission.wants_probe(tier):
            self.probes.append(Probe(tier, key, place))
        if awaits:
            return Lookup.RETRY
        if not allowed:
            self._contents.counts[f"{tier.value} hit not admitted"] += 1
            return Lookup.MISS
        if not self._load_pays(tier):
            self._contents.counts[f"{tier.value} hit computed sooner than loaded"] += 1
            return Lookup.MISS
        return self._reserve(key, tier, place)

    def _load_pays(self, tier: Tier) -> bool:
        """Return the one answer for all hits of the scanned request in a tier.

        A request is loaded from a tier as a whole or not at all, so the loads that count as queued
        are those that were begun for other requests.
        """
        pays = self._pays.get(tier)
        if pays is None:
            queued = self._contents.loading[tier]
            chunks = max(self._scanned_chunks, 1)
            pays = not queued or self._contents.admission.pays(tier, chunks, queued, self.engine.prefill_tokens())
            self._pays[tier] = pays
        return pays

    def _reserve(self, key: Key, tier: Tier, place: int) -> Lookup:
        for promised in self.promised:  # only now, since holding each slot at each hit would double a lookup's cost
            self._index.hold(promised)
        self._scanned_to -= len(self.promised)
        self.promised.clear()
        self._scanned_from = -1
        evicted: list[tuple[Key, int]] = []
        slot = self._index.add(key, State.RESERVED, evicted)
        self._contents.note_evicted(evicted)
        if slot is None:
            self._contents.counts["no slot for a hit"] += 1
            return Lookup.MISS
        self.reserved[slot] = (tier, place)
        self._index.hold(slot)
        return Lookup.HIT
