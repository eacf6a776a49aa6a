"""What the scheduler's half and the ranks tell each other in every step: vLLM's stock metadata with a field of ours."""

from __future__ import annotations

import dataclasses

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)

from kvpool_connector.transfer import Orders, Reports


@dataclasses.dataclass
class KVPoolMetadata(OffloadingConnectorMetadata):
    """One step's work for the ranks: the stock jobs, and ours."""

    orders: Orders = dataclasses.field(default_factory=Orders)
    pass_number: int = 0
    """The forward pass of this step; 0 where there is none."""


@dataclasses.dataclass
class KVPoolWorkerMetadata(OffloadingWorkerMetadata):
    """One rank's output of one step: the stock completions, and what the stock code has no field for."""

    reports: Reports = dataclasses.field(default_factory=Reports)
    pass_number: int = 0
    """The forward pass whose output brings this, so that the scheduler's half sees when it ended."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVPoolWorkerMetadata:
        """Merge two ranks. The parent's version would build a parent object and lose our field."""
        assert isinstance(other, KVPoolWorkerMetadata)
        merged = super().aggregate(other)
        assert isinstance(merged, OffloadingWorkerMetadata)
        return KVPoolWorkerMetadata(
            merged.completed_jobs,
            merged.transfer_stats,
            self.reports.merge(other.reports),
            max(self.pass_number, other.pass_number),
        )
