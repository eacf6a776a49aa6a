"""vLLM's OffloadingManager over the pool's decisions: translation of types, nothing else."""

from __future__ import annotations

from collections.abc import Collection

from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    LookupResult,
    OffloadingManager,
    OffloadKey,
    OffloadPolicy,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvpool_connector.identity import canonical, document_name
from kvpool_connector.log import get_logger
from kvpool_connector.scheduler.pool import Lookup, Pool
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.stores import Breaker
from kvpool_connector.transfer import Reports
from kvpool_connector.vllm.spec import KVPoolSpec, TransferSpec

logger = get_logger(__name__)

_RESULTS = {
    Lookup.HIT: LookupResult.HIT,
    Lookup.MISS: LookupResult.MISS,
    Lookup.PENDING: LookupResult.HIT_PENDING,
    Lookup.RETRY: LookupResult.RETRY,
}


class KVPoolManager(OffloadingManager):
    """All methods run on the scheduler's thread and return at once; see :class:`Pool` for what they decide."""

    def __init__(self, spec: KVPoolSpec) -> None:
        self._identity = spec.identity
        world_size = spec.config.parallel.world_size
        presence: Presence | None = None
        if spec.settings.remote is not None:
            timeouts = spec.settings.remote.timeouts
            presence = Presence(
                spec.connect(Breaker()),
                names=lambda key: [spec.part_name(rank, key) for rank in range(world_size)],
                timeout_s=timeouts.lookup_ms / 1000,
                patience_s=timeouts.connect_ms / 1000,
                greeting=(document_name(spec.identity), canonical(spec.document)),
            )
        self.pool = Pool(spec.slots, world_size, presence)
        logger.info("kvpool: %s", spec.describe())

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """See :meth:`Pool.lookup`."""
        return _RESULTS[self.pool.lookup(key, req_context.req_id)]

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        """Host memory or the remote store, for vLLM's metrics."""
        return CacheHitSource.EXTERNAL_UNSPECIFIED if self.pool.is_remote(key) else CacheHitSource.HOST

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """Used on the device: keep them here, too."""
        self.pool.index.touch(reversed(list(keys)))

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        """See :meth:`Pool.begin_load`."""
        return TransferSpec(self.pool.begin_load(list(keys), req_context.req_id), self._identity)

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """See :meth:`Pool.end_load`."""
        self.pool.end_load(keys, req_context.req_id)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """REQUEST_LEVEL: every chunk is offered to `prepare_store`, so what failed to load is stored again."""
        return RequestOffloadingContext(policy=OffloadPolicy.REQUEST_LEVEL)

    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """See :meth:`Pool.begin_store`."""
        transfer, evicted = self.pool.begin_store(list(keys), req_context.req_id)
        return PrepareStoreOutput(
            keys_to_store=[OffloadKey(key) for key in transfer.keys],
            store_spec=TransferSpec(transfer, self._identity),
            evicted_keys=[OffloadKey(key) for key in evicted],
        )

    def complete_store(self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True) -> None:
        """See :meth:`Pool.end_store`. ``success`` is always True: failures come through :meth:`on_reports`."""
        self.pool.end_store(keys)

    def on_reports(self, reports: Reports) -> None:
        """Called by the connector before vLLM's code sees the completions of the same worker output."""
        self.pool.on_reports(reports)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """See :meth:`Pool.end_step`."""
        self.pool.end_step()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """See :meth:`Pool.forget_request`."""
        self.pool.forget_request(req_context.req_id)

    def has_pending_work(self) -> bool:
        """Keep the engine stepping while puts run."""
        return self.pool.busy

    def reset_cache(self) -> None:
        """See :meth:`Pool.reset`. The remote store keeps its parts: other engines use them."""
        self.pool.reset()

    def shutdown(self) -> None:
        """End the presence thread."""
        self.pool.close()
