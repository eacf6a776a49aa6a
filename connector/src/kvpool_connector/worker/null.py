"""In place of a mover that could not be made: every job ends at once, failed, and the scheduler is told why."""

from __future__ import annotations

from collections.abc import Sequence

from kvpool_connector.transfer import Orders, Transfer
from kvpool_connector.worker.device.base import Chunk
from kvpool_connector.worker.job import Done
from kvpool_connector.worker.outbox import Outbox


class NullMover:
    """See :class:`kvpool_connector.worker.mover.Mover`. One thread."""

    idle = True

    def __init__(self, why: str) -> None:
        self.outbox = Outbox(broken=why)

    def store(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> None:
        """Fail."""
        self._fail(job_id, transfer)

    def load(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> None:
        """Fail."""
        self._fail(job_id, transfer)

    def order(self, orders: Orders) -> None:
        """Fail."""
        for spill in orders.spills:
            self.outbox.spills_running += 1
            self.outbox.spilled(spill.ticket, set(range(len(spill.keys))))

    def wait(self, job_ids: set[int]) -> None:
        """Nothing ever touches KV memory."""

    def close(self) -> None:
        """Nothing to end."""

    def _fail(self, job_id: int, transfer: Transfer) -> None:
        self.outbox.done(Done(job_id, 0, 0.0), transfer, dict.fromkeys(range(len(transfer.keys)), "no mover"), set())
