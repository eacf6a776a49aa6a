"""In place of a mover that could not be made: every job ends at once, failed, and the scheduler is told why."""

from __future__ import annotations

from collections.abc import Sequence

from kvpool_connector.transfer import Kind, Orders, Reports, Transfer
from kvpool_connector.worker.device.base import Chunk
from kvpool_connector.worker.mover import Done


class NullMover:
    """See :class:`kvpool_connector.worker.mover.Mover`. One thread."""

    idle = True

    def __init__(self, why: str) -> None:
        self._reports = Reports(broken=why)
        self._done: list[Done] = []
        self._failed_requests: set[str] = set()

    def store(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> None:
        """Fail."""
        self._fail(job_id, transfer)

    def load(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> None:
        """Fail."""
        self._fail(job_id, transfer)

    def order(self, orders: Orders) -> None:
        """Fail."""
        for spill in orders.spills:
            self._reports.spilled[spill.ticket] = [set(range(len(spill.keys)))]

    def poll(self) -> list[Done]:
        """All jobs so far."""
        done, self._done = self._done, []
        return done

    def take_failed_requests(self) -> set[str]:
        """Requests with a load among them."""
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def take_reports(self) -> Reports:
        """What failed."""
        reports, self._reports = self._reports, Reports()
        return reports

    def wait(self, job_ids: set[int]) -> None:
        """Nothing ever touches KV memory."""

    def close(self) -> None:
        """Nothing to end."""

    def _fail(self, job_id: int, transfer: Transfer) -> None:
        self._done.append(Done(job_id, 0, 0.0))
        self._reports.failed[transfer.ticket] = set(range(len(transfer.keys)))
        if transfer.kind is Kind.LOAD:
            self._failed_requests.add(transfer.req_id)
