"""The class that vLLM loads: its stock OffloadingConnector over our spec, plus a channel for failures.

One instance lives in the scheduler's process, one in every worker process. They share no memory: failures and ended puts
ride on the worker metadata that the stock code sends with every step's output. Everything else (hybrid groups, sliding windows,
preemption, fences, resets) is the stock scheduler half.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from kvpool_connector import config as kvpool_config
from kvpool_connector.log import get_logger
from kvpool_connector.transfer import Reports
from kvpool_connector.vllm.facts import engine_facts
from kvpool_connector.vllm.manager import KVPoolManager
from kvpool_connector.vllm.spec import EXTRA_KEY, Settings
from kvpool_connector.vllm.worker import KVPoolWorker

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput

logger = get_logger(__name__)


@dataclasses.dataclass
class KVPoolWorkerMetadata(OffloadingWorkerMetadata):
    """One rank's output of one step: the stock completions, and what the stock code has no field for."""

    reports: Reports = dataclasses.field(default_factory=Reports)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVPoolWorkerMetadata:
        """Merge two ranks. The parent's version would build a parent object and lose our field."""
        assert isinstance(other, KVPoolWorkerMetadata)
        merged = super().aggregate(other)
        assert isinstance(merged, OffloadingWorkerMetadata)
        return KVPoolWorkerMetadata(merged.completed_jobs, merged.transfer_stats, self.reports.merge(other.reports))


class KVPoolConnector(OffloadingConnector):
    """Four overrides; see the module's text."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises:
        ValueError: configuration, weights or layout cannot be used; one message that names the setting to change. vLLM
            stops then: a pool that silently does nothing is a fault.
        """
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        _prepare(transfer, vllm_config)
        super().__init__(vllm_config, role, kv_cache_config)

    # ---- worker process, main thread ---------------------------------------------------------------------

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Completed loads, and which of them failed. One poll of the mover feeds both."""
        results = super().get_transfer_results(finished_req_ids)
        results.failed_recving |= self._worker.mover.take_failed_requests()
        return results

    def build_connector_worker_meta(self) -> KVPoolWorkerMetadata | None:
        """Called after `get_transfer_results` in the same step, so a failure travels with its completion."""
        stock = super().build_connector_worker_meta()
        reports = self._worker.mover.take_reports()
        if stock is None:
            if not reports:
                return None
            stock = OffloadingWorkerMetadata()
        return KVPoolWorkerMetadata(stock.completed_jobs, stock.transfer_stats, reports)

    # ---- scheduler process, scheduler thread -------------------------------------------------------------

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Reports first: the parent then completes the same transfers."""
        meta = connector_output.kv_connector_worker_meta
        if isinstance(meta, KVPoolWorkerMetadata):
            self._manager.on_reports(meta.reports)
        super().update_connector_output(connector_output)

    # ---- our halves inside the stock objects -------------------------------------------------------------

    @property
    def _worker(self) -> KVPoolWorker:
        assert self.connector_worker is not None
        worker = self.connector_worker.worker
        assert isinstance(worker, KVPoolWorker)
        return worker

    @property
    def _manager(self) -> KVPoolManager:
        manager = self.scheduler.manager
        assert isinstance(manager, KVPoolManager)
        return manager


def _prepare(transfer: KVTransferConfig, vllm_config: VllmConfig) -> None:
    """Read our configuration and leave it where vLLM's factory and our spec look for it."""
    extra = transfer.kv_connector_extra_config
    if transfer.kv_load_failure_policy != "recompute":
        logger.warning(
            "kv_load_failure_policy is %r: a request whose load fails ends with an error; set it to 'recompute'",
            transfer.kv_load_failure_policy,
        )
    config = kvpool_config.load(extra)
    transfer.kv_connector_extra_config = extra | {
        "spec_name": "KVPoolSpec",
        "spec_module_path": "kvpool_connector.vllm.spec",
        "offload_prompt_only": not config.offload_generated_tokens,
        EXTRA_KEY: Settings(config, engine_facts(vllm_config, config)),
    }
