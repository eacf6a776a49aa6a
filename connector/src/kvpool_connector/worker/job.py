"""A transfer on its way through the lanes of a rank, and its end."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

from kvpool_connector.transfer import Tier, Transfer
from kvpool_connector.worker.device.base import Chunk


@dataclasses.dataclass(slots=True)
class Job:
    """Belongs to the lane that it is on; lanes hand it on through their queues."""

    job_id: int
    transfer: Transfer
    chunks: Sequence[Chunk]
    fence: object
    started: float
    failed: dict[int, str] = dataclasses.field(default_factory=dict)
    """Position in the transfer's keys, and why."""
    differed: set[int] = dataclasses.field(default_factory=set)
    ended: bool = False
    queued: Tier | None = None
    """The tier in whose lane the job waits for its fetch to begin."""
    _claim: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def deadline(self) -> float:
        """When its fetches have to end, as ``time.monotonic()`` has it."""
        return self.started + self.transfer.fetch_s

    def claims(self, tier: Tier) -> bool:
        """Return whether the fetch from this tier has yet to begin. It is the caller's then, and nobody else's: the lane begins
        it, or it is given up."""
        with self._claim:
            waits = self.queued is tier
            if waits:
                self.queued = None
            return waits


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A finished job, for vLLM's statistics."""

    job_id: int
    nbytes: int
    seconds: float
