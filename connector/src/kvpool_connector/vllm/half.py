"""A half that cannot start beside halves that can: the engine then runs without the cache, and nothing waits for it.

The scheduler's half and each rank start on their own, perhaps on different nodes: a file may be
missing on one of them. Whoever fails is replaced by a half that answers the others.
"""

from __future__ import annotations

from abc import ABCMeta
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole, KVConnectorTransferResults
from vllm.v1.kv_offload.base import LoadStoreSpec

from kvpool_connector.log import get_logger
from kvpool_connector.transfer import Transfer
from kvpool_connector.vllm import failure
from kvpool_connector.vllm.disabled import DisabledConnector
from kvpool_connector.vllm.messages import KVPoolMetadata, KVPoolWorkerMetadata
from kvpool_connector.vllm.spec import TransferSpec
from kvpool_connector.worker.null import NullMover

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = get_logger(__name__)


class StopOrContinue(ABCMeta):
    """Makes the class it belongs to answer a fault in its constructor by configuration."""

    def __call__(cls, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> Any:
        """Return an instance, or a :class:`DisabledHalf`.

        Raises:
            Exception: what the constructor raised, where ``on_failure`` is "stop".
        """
        try:
            return super().__call__(vllm_config, role, kv_cache_config)
        except Exception as error:
            assert vllm_config.kv_transfer_config is not None
            if not failure.continues(vllm_config.kv_transfer_config.kv_connector_extra_config):
                raise
            logger.error("kvpool cannot start, the engine runs without it: %s", error)
            return DisabledHalf(vllm_config, role, kv_cache_config, str(error))


class DisabledHalf(DisabledConnector):
    """The scheduler's half gives the ranks nothing to do; a rank ends every job at once, as failed, and says why.

    The scheduler's half hears of it with the first step and looks up and stores no more. All
    methods run on vLLM's thread.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig, why: str
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._mover = NullMover(why)
        self._loads: dict[int, str] = {}  # request by job
        self._ended = KVPoolWorkerMetadata()

    # ---- worker process ----------------------------------------------------------------------------------

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Fail all of the step's jobs. vLLM calls this in every step, with or without a forward pass."""
        metadata = self._connector_metadata
        if not isinstance(metadata, KVPoolMetadata):
            return  # the scheduler's half is disabled as well, or this is a trial run of the model
        for job_id, job in metadata.load_jobs.items():
            self._loads[job_id] = job.req_id
            self._mover.load(job_id, _transfer(job.src_spec), ())
        for job_id, job in metadata.store_jobs.items():
            self._mover.store(job_id, _transfer(job.dst_spec), ())
        self._mover.order(metadata.orders)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Return the ended loads, all of them failed, so that vLLM computes their tokens."""
        results = KVConnectorTransferResults()
        for done in self._mover.outbox.poll():
            self._ended.mark_completed(done.job_id)
            if done.job_id in self._loads:
                results.finished_recving.add(self._loads.pop(done.job_id))
        results.failed_recving |= self._mover.outbox.take_failed_requests()
        return results

    def build_connector_worker_meta(self) -> KVPoolWorkerMetadata | None:
        """Return what ended in this step. The first step says why this rank does nothing."""
        ended = self._ended
        ended.reports = self._mover.outbox.take_reports()
        if not ended.completed_jobs and not ended.reports:
            return None
        self._ended = KVPoolWorkerMetadata()
        return ended

    # ---- scheduler process -------------------------------------------------------------------------------

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVPoolMetadata:
        """Return a step without work, in the type that a healthy rank expects."""
        return KVPoolMetadata({}, {})


def _transfer(spec: LoadStoreSpec) -> Transfer:
    assert isinstance(spec, TransferSpec)
    return spec.transfer
