"""Between KV memory and rows: copy, seal, check, compare. Runs on the copy lane only."""

from __future__ import annotations

from collections.abc import Callable

from kvpool_connector.format import Verdict
from kvpool_connector.worker.device.base import Device
from kvpool_connector.worker.differ import differs
from kvpool_connector.worker.job import Job
from kvpool_connector.worker.rows import Rows


class Copier:
    """Both ways. A copy is short and never abandoned, because it reads or writes blocks that vLLM holds for it."""

    def __init__(self, device: Device, rows: Rows, count: Callable[[str, int], None]) -> None:
        self._device, self._rows, self._count = device, rows, count

    def store(self, job: Job) -> None:
        """KV memory to rows, sealed. Positions that are compared keep their rows; those that differ are noted in the job."""
        transfer, rows = job.transfer, self._rows
        fresh = [position for position in range(len(transfer.keys)) if position not in transfer.compared]
        payloads = [rows.payload(transfer.keys[p], transfer.slots[p]) for p in fresh]
        self._device.copy_out([job.chunks[p] for p in fresh], payloads, job.fence)
        for position in fresh:
            rows.seal(transfer.keys[position], transfer.slots[position])
        job.differed = {position for position in sorted(transfer.compared) if self._differs(job, position)}

    def _differs(self, job: Job, position: int) -> bool:
        """Verification: the row must hold what was computed just now."""
        key, slot, rows = job.transfer.keys[position], job.transfer.slots[position], self._rows
        computed = rows.payload(key, rows.compared)
        self._device.copy_out([job.chunks[position]], [computed], job.fence)
        self._count("verified", 1)
        intact = rows.verdict(key, slot) is Verdict.INTACT
        return intact and differs(rows.payload(key, slot), computed, rows.parts.dtype)

    def load(self, job: Job) -> dict[int, str]:
        """Check every part that arrived, then copy the intact ones. Blocks of failed keys are left as they are.

        Returns:
            damaged parts: position and what is wrong. What failed before is in the job.
        """
        transfer, rows = job.transfer, self._rows
        damaged: dict[int, str] = {}
        for position, key in enumerate(transfer.keys):
            if position not in job.failed:
                verdict = rows.verdict(key, transfer.slots[position])
                if verdict is not Verdict.INTACT:
                    damaged[position] = verdict.value
        good = [p for p in range(len(transfer.keys)) if p not in job.failed and p not in damaged]
        if good:
            payloads = [rows.payload(transfer.keys[p], transfer.slots[p]) for p in good]
            self._device.copy_in(payloads, [job.chunks[p] for p in good], job.fence)
        return damaged
