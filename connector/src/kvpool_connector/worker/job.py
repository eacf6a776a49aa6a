"""A transfer on its way through the lanes of a rank, and its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kvpool_connector.transfer import Transfer
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


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A finished job, for vLLM's statistics."""

    job_id: int
    nbytes: int
    seconds: float
