"""What the lanes have to tell, on its way to vLLM's thread. Ended jobs and their failures become visible in the same poll,
never before or after: separate polls would let a completion pass without its failure."""

from __future__ import annotations

import queue
from collections import Counter

from kvpool_connector.stores import Outcome
from kvpool_connector.transfer import Kind, Reports, Sample, Ticket, Transfer
from kvpool_connector.worker.job import Done

_LATE = (Outcome.TIMEOUT.value, Outcome.STALLED.value)


class Outbox:
    """The first group of methods may be called from any thread, the second on vLLM's thread only."""

    def __init__(self, broken: str = "") -> None:
        """Args:
        broken: why this rank can do nothing, if so.
        """
        self._done: queue.SimpleQueue[tuple[Done, Transfer, dict[int, str], set[int]]] = queue.SimpleQueue()
        self._spilled: queue.SimpleQueue[tuple[Ticket, set[int]]] = queue.SimpleQueue()
        self._samples: queue.SimpleQueue[Sample] = queue.SimpleQueue()
        self._counted: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._reports = Reports(broken=broken)
        self._failed_requests: set[str] = set()
        self.spills_running = 0
        """Spills that were ordered and not yet polled."""
        self.outcomes: Counter[str] = Counter()
        """What happened to parts so far ("load ok", "get timeout", ...), as of the last poll."""

    # ---- any thread ----------------------------------------------------------------------------------------

    def done(self, done: Done, transfer: Transfer, failed: dict[int, str], differed: set[int]) -> None:
        """A job ended; these positions of its keys failed and why, those hold something else than was computed."""
        self._done.put((done, transfer, failed, differed))

    def spilled(self, ticket: Ticket, missing: set[int]) -> None:
        """A write to a lower tier ended; these positions are not in the tier."""
        self._spilled.put((ticket, missing))

    def sample(self, sample: Sample) -> None:
        """A read was timed."""
        self._samples.put(sample)

    def count(self, what: str, number: int) -> None:
        """Something happened to so many parts."""
        if number:
            self._counted.put((what, number))

    # ---- vLLM's thread -------------------------------------------------------------------------------------

    def poll(self) -> list[Done]:
        """Jobs that ended since the last call; their failures are in the reports from now on."""
        ended: list[Done] = []
        while not self._spilled.empty():
            ticket, missing = self._spilled.get()
            self.spills_running -= 1
            self._reports.spilled[ticket] = [missing]
        while not self._samples.empty():
            self._reports.samples.append(self._samples.get())
        while not self._done.empty():
            done, transfer, failed, differed = self._done.get()
            ended.append(done)
            if failed:
                self._reports.failed[transfer.ticket] = set(failed)
                lost = {position for position, why in failed.items() if why not in _LATE}
                self._reports.lost[transfer.ticket] = lost
                if transfer.kind is Kind.LOAD:
                    self._failed_requests.add(transfer.req_id)
            if differed:
                self._reports.differed[transfer.ticket] = differed
        while not self._counted.empty():
            what, number = self._counted.get()
            self._reports.counts[what] += number
            self.outcomes[what] += number
        return ended

    def take_failed_requests(self) -> set[str]:
        """Requests whose load failed, among the jobs of the polls since the last call."""
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def take_reports(self) -> Reports:
        """What the scheduler must hear about the polls since the last call."""
        reports, self._reports = self._reports, Reports()
        return reports
