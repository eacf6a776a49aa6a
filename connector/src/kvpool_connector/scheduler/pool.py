"""Decisions of the scheduler's half, in vLLM's terms but without vLLM: the one object that vLLM's manager talks to.

All methods run on the scheduler's thread; nothing is locked and nothing waits. The slot index decides about memory, each
`Secondary` knows about a tier below it, `Admission` says whether a hit is worth loading (all in `Contents`);
`Lookups` answers, `Jobs` keeps running loads and stores, `Spills` writes down. This module joins them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from kvpool_connector.log import get_logger
from kvpool_connector.scheduler.admission import Admission
from kvpool_connector.scheduler.contents import Contents
from kvpool_connector.scheduler.events import Events
from kvpool_connector.scheduler.jobs import Jobs
from kvpool_connector.scheduler.lookups import Lookups
from kvpool_connector.scheduler.secondary.base import Secondary
from kvpool_connector.scheduler.spills import Spills
from kvpool_connector.scheduler.verify import Verification
from kvpool_connector.scheduler.watchdog import Watchdog
from kvpool_connector.tiers.slots import SlotIndex
from kvpool_connector.transfer import Orders, Reports, Ticket, Tier

logger = get_logger(__name__)


FETCH_S = 5.0
"""The longest that a fetch may take, unless the store's configuration says otherwise."""


class Pool:
    """Index of keys over numbered slots. Owns the slot numbers; the bytes belong to the ranks' arenas and slabs."""

    def __init__(
        self,
        index: SlotIndex,
        world_size: int,
        secondaries: Sequence[Secondary],
        admission: Admission,
        events: Events,
        verification: Verification | None = None,
        fetch_s: float = FETCH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        secondaries: the tiers below memory, in the order in which they are asked.
        fetch_s: the longest that a fetch may take.
        clock: of the watchdog.
        """
        self.contents = Contents(index, secondaries, admission, events, Watchdog(clock))
        self.index, self.secondaries, self.admission, self.events = index, secondaries, admission, events
        self.spills = Spills(index, secondaries, world_size, self._issue)
        self.lookups = Lookups(self.contents, verification)
        self.jobs = Jobs(self.contents, self.lookups, self.spills, self._issue, verification, fetch_s)
        self._fetch_s = fetch_s
        self.lookup, self.tier_of = self.lookups.lookup, self.lookups.tier_of
        self.begin_load, self.end_load = self.jobs.begin_load, self.jobs.end_load
        self.begin_store, self.end_store = self.jobs.begin_store, self.jobs.end_store
        self._last_ticket: Ticket = 0
        self._lost_rank = ""  # why a rank does nothing, for as long as this process lives
        for lower in secondaries:
            events.stored(lower.tier, lower.keys())  # what an earlier process left

    def end_step(self) -> None:
        """End of a scheduling step: promises lapse, questions go out, and memory makes room for what was stored."""
        self.contents.watchdog.end_step()
        self.lookups.end_step()
        if not self.broken:
            self.spills.make_room()
            self.spills.renew()

    def take_orders(self) -> Orders:
        """What the ranks have to do beside vLLM's jobs. Called when the step's stores are known."""
        spills, evicted = self.spills.issue()
        for tier, key in evicted:
            self.events.removed(tier, [key])
        probes, self.lookups.probes = self.lookups.probes, []
        return Orders(tuple(spills), tuple(probes))

    # ---- reports of the ranks ----------------------------------------------------------------------------

    def on_reports(self, reports: Reports) -> None:
        """Take failures and ended spills.

        Must be called BEFORE vLLM sees the completions of the same worker output, so that :meth:`end_load` and
        :meth:`end_store` already know what failed.
        """
        for ticket, positions in reports.failed.items():
            self.jobs.failed(ticket, positions, reports.lost.get(ticket, set()))
        running = self.jobs.running if reports.differed else set()
        for ticket, positions in reports.differed.items():
            if ticket in running:
                self._on_difference(len(positions))
        for ticket, ranks in reports.spilled.items():
            self._on_spilled(ticket, ranks)
        for sample in reports.samples:
            self.admission.read(sample.tier, sample.nbytes, sample.seconds, at_most=sample.at_most)
        self.counts.update(reports.counts)
        for lower in self.secondaries:
            lower.on_counts(reports.counts)
        if reports.broken and not self._lost_rank:
            self._lost_rank = reports.broken
            self.close_down(reports.broken, "Mend that and start the engine again")
        if reports:
            self.lookups.waiting.changed()

    def _on_spilled(self, ticket: Ticket, ranks: Sequence[set[int]]) -> None:
        stale = self.spills.is_stale(ticket)
        spill = self.spills.on_report(ticket, ranks)
        if spill is None:
            return
        lower = self.contents.secondary(spill.tier)
        if not stale:
            self.events.stored(spill.tier, spill.keys)
        elif lower is not None:
            lower.give_back(spill)

    def _on_difference(self, count: int) -> None:
        """What was computed is not what memory held for the same tokens: nothing that is cached can be trusted, or given to
        other engines."""
        self.counts["verification mismatch"] += count
        self.close_down(
            f"verification: {count} recomputed chunks differ from the cached ones",
            "Resetting the external cache starts anew",
        )

    def close_down(self, why: str, way_out: str) -> None:
        """Answer every lookup with a miss and store nothing, until :meth:`reset` if that can help. Says so, loudly."""
        if not self.broken:
            self.contents.broken, self.lookups.exceptional = why, True
            self.spills.forget_waiting()
            logger.error("kvpool loads and stores nothing from now on: %s. %s", why, way_out)

    # ---- life cycle --------------------------------------------------------------------------------------

    def ends_wait(self, req_id: str, chunks: int, wait_s: float) -> bool:
        """Return whether a request that was told to come back has waited for too long. All its lookups are misses then.

        Args:
            chunks: that it may gain.
            wait_s: what the store's answer may take at least, and a prefill engine's writes.
        """
        admission = self.contents.admission
        bound_s = admission.lookup_patience_s(chunks, wait_s) + admission.fetch_budget_s(chunks, self._fetch_s)
        ends = self.contents.watchdog.ends_wait(req_id, bound_s)
        if ends:
            self.lookups.give_up(req_id)
        return ends

    def answered(self, req_id: str) -> None:
        """The request is told what can be loaded for it, and waits no longer."""
        self.contents.watchdog.answered(req_id)

    def forget_request(self, req_id: str) -> None:
        """The request is finished; its load, if any, still ends through :meth:`end_load`."""
        self.lookups.forget(req_id)
        self.contents.watchdog.forget(req_id)
        self.jobs.forget_request(req_id)

    @property
    def broken(self) -> str:
        """Why nothing is loaded or stored any more; empty while all is well."""
        return self.contents.broken

    @property
    def counts(self) -> Counter[str]:
        """What happened, as far as it was not taken; see :meth:`take_counts`."""
        return self.contents.counts

    @property
    def counted(self) -> bool:
        """Whether there are counts that nobody took yet."""
        return bool(self.counts or self.spills.counts or self.contents.watchdog.counts)

    def take_counts(self) -> Counter[str]:
        """Return what was counted since the last call."""
        taken = Counter[str]()
        for counts in (self.counts, self.spills.counts, self.contents.watchdog.counts):
            taken.update(counts)
            counts.clear()
        return taken

    def queued(self, tier: Tier) -> int:
        """Return how many parts a tier has still to deliver for loads that have begun."""
        return self.contents.loading[tier]

    @property
    def store_reachable(self) -> bool | None:
        """Whether the remote store answered last time; None without one."""
        store = self.contents.secondary(Tier.REMOTE)
        return None if store is None else store.usable

    def loads_from_store(self, req_id: str) -> bool:
        """Whether the request would be given what the remote store has of its prompt, as things are now."""
        if self.broken or not self.store_reachable:
            return False
        return self.admission.allows(Tier.REMOTE) and self.lookups.allows(req_id, Tier.REMOTE)

    @property
    def busy(self) -> bool:
        """Only engine steps bring spills and probes to their end."""
        return self.spills.busy or bool(self.lookups.probes)

    def reset(self) -> None:
        """Forget every key in memory and on disk; the remote store keeps its parts, other engines use them.

        vLLM makes the ranks wait for running loads and stores before a slot is used again; spills are not vLLM's, so their
        rows stay taken until the ranks report them.
        """
        running = self.spills.reset()
        self.jobs.reset()
        self.lookups.reserved.clear()
        self.events.removed(Tier.MEMORY, [key for key, slot in self.index if self.index.good[slot]])
        self.index.clear(keep=[slot for spill in running for slot in spill.slots])
        for lower in self.secondaries:
            self.events.removed(lower.tier, lower.keys())
            lower.reset([spill for spill in running if spill.tier is lower.tier])
        self.lookups.waiting.reset()
        self.contents.broken = self._lost_rank

    def close(self) -> None:
        """End the threads of the tiers."""
        for lower in self.secondaries:
            lower.close()

    def _issue(self) -> Ticket:
        self._last_ticket += 1
        return self._last_ticket
