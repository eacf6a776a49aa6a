"""The class that vLLM loads: its stock OffloadingConnector over our spec, plus a channel for orders and failures.

One instance lives in the scheduler's process, one in every worker process. They share no memory: orders ride on the metadata of
each step, failures and ended spills on the worker metadata that comes back. Everything else (hybrid groups, sliding windows,
preemption, fences, resets) is the stock scheduler half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole, KVConnectorTransferResults
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from kvpool_connector.log import get_logger
from kvpool_connector.vllm import adapter_loads
from kvpool_connector.vllm.engine_view import RunningRequests, pass_tokens
from kvpool_connector.vllm.half import StopOrContinue
from kvpool_connector.vllm.handover import held_elsewhere, offer, promised
from kvpool_connector.vllm.keys import covered
from kvpool_connector.vllm.manager import KVPoolManager
from kvpool_connector.vllm.messages import KVPoolMetadata, KVPoolWorkerMetadata
from kvpool_connector.vllm.prepare import SPEC, prepare
from kvpool_connector.vllm.spec import KVPoolSpec
from kvpool_connector.vllm.worker import KVPoolWorker, SecondRegistration, make_disabled_worker

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = get_logger(__name__)


def _adapter_loads(connector: KVConnectorBase_V1, path: str) -> None:
    """Tell a scheduler's half of ours that vLLM loads an adapter; others are left alone."""
    if isinstance(connector, KVPoolConnector):
        connector._manager.adapters.loading(path)


class KVPoolConnector(OffloadingConnector, metaclass=StopOrContinue):
    """Few overrides; see the module's text."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises:
        ConfigError: configuration, weights or layout cannot be used; one message that names the setting to change. vLLM
            stops then, unless ``on_failure`` says otherwise: a pool that silently does nothing is a fault.
        """
        prepare(vllm_config, kv_cache_config, role)
        super().__init__(vllm_config, role, kv_cache_config)
        if role is KVConnectorRole.SCHEDULER:
            self._engine = RunningRequests(self.scheduler, self._manager.role)
            self._manager.pool.lookups.set_windows(
                {
                    # As `make_offload_key` names a group. Two more than the window: vLLM needs one more for a last chunk that is
                    # not full, and one more for the group of a draft model.
                    group.group_idx.to_bytes(4, "big"): group.sliding_window_size_in_chunks + 2
                    for group in self.scheduler.config.kv_group_configs
                    if group.sliding_window_size_in_chunks is not None
                }
            )
            if vllm_config.lora_config is not None:
                adapter_loads.watch(_adapter_loads)

    # ---- worker process, main thread ---------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Start this rank's half, or where that fails and ``on_failure`` is "continue", one that fails every job.

        Raises:
            Exception: what went wrong, where ``on_failure`` is "stop".
            SecondRegistration: another engine of this process uses the worker, which nothing may replace.
        """
        try:
            super().register_kv_caches(kv_caches)
        except SecondRegistration:
            raise
        except Exception as error:
            assert self.connector_worker is not None
            spec = self.connector_worker.spec
            assert isinstance(spec, KVPoolSpec)
            self.connector_worker.worker = make_disabled_worker(spec, error)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Called in every step, with or without a forward pass: orders ride along."""
        super().start_load_kv(forward_context, **kwargs)
        if isinstance(self._connector_metadata, KVPoolMetadata) and self._connector_metadata.orders:
            self._worker.mover.order(self._connector_metadata.orders)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Completed loads, and which of them failed. One poll of the mover feeds both."""
        results = super().get_transfer_results(finished_req_ids)
        results.failed_recving |= self._worker.mover.outbox.take_failed_requests()
        return results

    def build_connector_worker_meta(self) -> KVPoolWorkerMetadata | None:
        """Called after `get_transfer_results` in the same step, so a failure travels with its completion."""
        stock = super().build_connector_worker_meta()
        reports = self._worker.mover.outbox.take_reports()
        metadata = self._connector_metadata
        pass_number = metadata.pass_number if isinstance(metadata, KVPoolMetadata) else 0
        if stock is None:
            if not reports and not pass_number:
                return None
            stock = OffloadingWorkerMetadata()
        return KVPoolWorkerMetadata(stock.completed_jobs, stock.transfer_stats, reports, pass_number)

    # ---- scheduler process, scheduler thread -------------------------------------------------------------

    def on_new_request(self, request: Request) -> None:
        """Leave out a request that its keys do not describe, and have the files of an adapter checked,
        which its keys depend on."""
        super().on_new_request(request)
        if not covered(request, self._vllm_config.model_config.dtype):
            self._manager.leave_out(request.request_id)
        if request.lora_request is not None:
            context = self.scheduler._req_status[request.request_id].req_context
            context.set_state(self._manager.adapters.check(request.lora_request.lora_path))

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """The load begins here, and the log learns of what size it is."""
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        state = self.scheduler._req_status.get(request.request_id)  # 0 tokens: perhaps not tracked
        on_device = 0 if state is None else state.num_locally_computed_tokens
        self._manager.log.scheduled(request.request_id, num_external_tokens, on_device, request.num_prompt_tokens)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """The stock answer, with three exceptions: requests that are left out; prefill and decode, see
        :mod:`kvpool_connector.vllm.handover`; a request that was told to come back for too long, see
        :mod:`kvpool_connector.scheduler.watchdog`."""
        if not self._manager.serves(request.request_id):
            return 0, False
        self._manager.scan_begins(request.num_tokens - num_computed_tokens, self._engine)
        tokens, loads = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if tokens is None and self._manager.ends_wait(request.request_id, request.num_tokens - num_computed_tokens):
            # All misses now, which the stock half has to note. It says None where stores of the request's own run, from
            # before it was preempted: they are no reason not to compute.
            super().get_num_new_matched_tokens(request, num_computed_tokens)
            return 0, False
        if tokens is not None:
            self._manager.answered(request.request_id)
        params = request.kv_transfer_params
        if tokens is None or not params:
            return tokens, loads
        found, whole = num_computed_tokens + tokens, self._manager.whole_chunks(request.num_tokens - 1)
        if held_elsewhere(params) and found < whole:
            return 0, False  # a part of the prompt from here would keep MultiConnector from fetching all of it there
        if self._manager.awaits(request.request_id, min(whole, self._manager.whole_chunks(promised(params))) - found):
            return None, False
        return tokens, loads

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """See :meth:`request_finished_all_groups`, which vLLM calls unless another connector beside this one lacks it."""
        return self._with_offer(request, super().request_finished(request, block_ids))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The stock answer, and from a prefill engine what it computed."""
        return self._with_offer(request, super().request_finished_all_groups(request, block_ids))

    def _with_offer(
        self, request: Request, stock: tuple[bool, dict[str, Any] | None]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The log learns how much there was to store."""
        prompt_only = self.scheduler.config.offload_prompt_only
        self._manager.log.ends(request.request_id, request.num_prompt_tokens if prompt_only else request.num_tokens)
        computed = min(request.num_computed_tokens, request.num_prompt_tokens)
        return stock[0], stock[1] or offer(self._manager.role, request.kv_transfer_params, computed)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVPoolMetadata:
        """The stock jobs of this step, and our orders."""
        stock = super().build_connector_meta(scheduler_output)
        assert isinstance(stock, OffloadingConnectorMetadata)
        orders = self._manager.take_orders()
        pass_number = self._manager.pass_launched(*pass_tokens(scheduler_output))
        return KVPoolMetadata(stock.load_jobs, stock.store_jobs, stock.jobs_to_flush, orders, pass_number)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Reports first: the parent then completes the same transfers."""
        meta = connector_output.kv_connector_worker_meta
        if isinstance(meta, KVPoolWorkerMetadata):
            if meta.pass_number:
                self._manager.pass_ended(meta.pass_number)
            self._manager.on_reports(meta.reports)
        super().update_connector_output(connector_output)

    # ---- front end ---------------------------------------------------------------------------------------

    @classmethod
    def build_prom_metrics(cls, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> KVConnectorPromMetrics:
        """In the front end's process nobody has told vLLM's factory yet whose metrics these are."""
        assert vllm_config.kv_transfer_config is not None
        vllm_config.kv_transfer_config.kv_connector_extra_config |= SPEC
        return super().build_prom_metrics(vllm_config, *args, **kwargs)

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
