"""vLLM's OffloadingManager over the pool's decisions: translation of types, nothing else."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    Locality,
    Medium,
    OffloadingEvent,
    OffloadingManager,
    OffloadKey,
    OffloadPolicy,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvpool_connector.geometry import Geometry
from kvpool_connector.scheduler.engine_view import EngineView
from kvpool_connector.scheduler.lookups import ALL_TIERS
from kvpool_connector.scheduler.pool import Pool
from kvpool_connector.transfer import Orders, Reports, Tier
from kvpool_connector.vllm.adapters import AdapterCheck, Adapters
from kvpool_connector.vllm.handover import Awaited, Role
from kvpool_connector.vllm.lookup import PoolLookup
from kvpool_connector.vllm.metrics import Shape, collect
from kvpool_connector.vllm.request_log import RequestLog
from kvpool_connector.vllm.spec import TransferSpec

_SOURCES = {
    Tier.MEMORY: CacheHitSource.HOST,
    Tier.DISK: CacheHitSource.DISK,
    Tier.REMOTE: CacheHitSource.EXTERNAL_UNSPECIFIED,
}
_MEDIA = {
    Tier.MEMORY: (Medium.CPU, Locality.LOCAL),
    Tier.DISK: (Medium.STORAGE, Locality.LOCAL),
    Tier.REMOTE: (Medium.STORAGE, Locality.REMOTE),
}
_STATS_EVERY_S = 1.0


class KVPoolManager(PoolLookup, OffloadingManager):
    """All methods run on the scheduler's thread and return at once; see :class:`Pool` for what they decide."""

    def __init__(
        self, pool: Pool, geometry: Geometry, role: Role = Role.BOTH, *, handover_s: float = 0.0, answer_s: float = 0.0
    ) -> None:
        """Args:
        handover_s: how long a decode engine's request waits for what its prefill engine writes.
        answer_s: what the store's answer may take, and the hand-over of a decode engine.
        """
        self.adapters = Adapters()
        super().__init__(pool, self.adapters)
        self.pool, self.role = pool, role
        self._identity = geometry.identity
        self._awaited, self._answer_s = Awaited(handover_s), answer_s
        self.log = RequestLog(geometry.group_tokens, len(geometry.blocks.tokens))
        self._unkeyed: set[str] = set()  # requests whose keys don't cover their content
        self._chunk_tokens = geometry.chunk_tokens
        self.shape = Shape(geometry.chunk_tokens, geometry.chunk_parts, geometry.identity)
        self._stats_at = 0.0

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        """The tier, for vLLM's metrics."""
        return _SOURCES[self.pool.tier_of(self._keys([key], req_context)[0])]

    def scan_begins(self, tokens: int, engine: EngineView) -> None:
        """Called by the connector before the lookups of a request that has so many tokens beyond those on the device."""
        self.pool.lookups.scan_begins(tokens // self._chunk_tokens, engine)

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        """See :meth:`Jobs.begin_load`."""
        transfer = self.pool.begin_load(self._keys(keys, req_context), req_context.req_id)
        self.log.load_begins(req_context.req_id, transfer)
        return TransferSpec(transfer, self._identity)

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """See :meth:`Jobs.end_load`."""
        complete = self.pool.end_load(req_context.req_id)
        self.log.load_ended(req_context.req_id, complete=complete)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """REQUEST_LEVEL: every chunk is offered to `prepare_store`, so what failed to load is stored again.

        A request's ``kv_load_tiers`` counts for memory, too, which vLLM's own manager leaves out.
        """
        allows = req_context.load_tier_filter.allows
        tiers = frozenset(tier for tier, place in _MEDIA.items() if allows(*place))
        if tiers != ALL_TIERS:
            self.pool.lookups.restrict(req_context.req_id, tiers)
        return RequestOffloadingContext(policy=OffloadPolicy.REQUEST_LEVEL)

    def leave_out(self, req_id: str) -> None:
        """Called by the connector for a new request whose keys don't cover its content: nothing of it is stored."""
        self._unkeyed.add(req_id)
        self.pool.counts["request left out"] += 1

    def serves(self, req_id: str) -> bool:
        """Return whether the cache may be asked for the request at all."""
        return req_id not in self._unkeyed

    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """See :meth:`Jobs.begin_store`. A decode engine keeps nothing of what it computes."""
        stores = self.role.stores and req_context.req_id not in self._unkeyed
        stock = list(keys) if stores else []
        own = self._keys(stock, req_context)
        stock_of = dict(zip(own, stock, strict=False))  # no own keys: an adapter whose files are not known
        transfer = self.pool.begin_store(own, req_context.req_id)
        self.log.store_begins(req_context.req_id, len(transfer.keys))
        return PrepareStoreOutput(
            keys_to_store=[stock_of[key] for key in transfer.keys],
            store_spec=TransferSpec(transfer, self._identity),
            evicted_keys=[],  # read by nobody in vLLM 0.32; what went is told through `take_events`
        )

    def complete_store(self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True) -> None:
        """See :meth:`Jobs.end_store`. ``success`` is always True: failures come through :meth:`on_reports`."""
        self.log.store_ended(req_context.req_id, len(keys), self.pool.end_store(self._keys(keys, req_context)))

    def _keys(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> list[bytes]:
        """Return the pool's keys for vLLM's: others where the request has an adapter."""
        check = req_context.get_state(AdapterCheck)
        return list(keys) if check is None else check.keys(keys)

    def whole_chunks(self, tokens: int) -> int:
        """So many of the tokens fill whole chunks in every KV group; others are never cached."""
        return tokens - tokens % self._chunk_tokens

    def awaits(self, req_id: str, missing: int) -> bool:
        """Called by the connector after a lookup: whether the request shall wait for tokens that its prefill engine is
        writing to the store, and look again in the next step."""
        if missing <= 0 or self.role is not Role.CONSUMER or not self.pool.loads_from_store(req_id):
            return False
        late = self._awaited.late
        waits = self._awaited.waits(req_id)
        if self._awaited.late > late:
            self.pool.counts["handover too late"] += 1
        return waits

    def ends_wait(self, req_id: str, tokens: int) -> bool:
        """Called by the connector when a request was told to come back; see :meth:`Pool.ends_wait`.

        Args:
            tokens: beyond those on the device.
        """
        return self.pool.ends_wait(req_id, max(tokens // self._chunk_tokens, 1), self._answer_s)

    def answered(self, req_id: str) -> None:
        """Called by the connector when a request was told what is loaded for it."""
        self.pool.answered(req_id)

    def on_reports(self, reports: Reports) -> None:
        """Called by the connector before vLLM's code sees the completions of the same worker output."""
        self.pool.on_reports(reports)

    def take_orders(self) -> Orders:
        """Called by the connector when the step's stores are known."""
        return self.pool.take_orders()

    def pass_launched(self, prefill_tokens: int, decode_tokens: int) -> int:
        """Called by the connector when a pass goes to the ranks; see :meth:`Passes.launch`."""
        return self.pool.admission.pass_launched(prefill_tokens, decode_tokens)

    def pass_ended(self, number: int) -> None:
        """Called by the connector when the output of a pass is back."""
        self.pool.admission.pass_ended(number)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """See :meth:`Pool.end_step`."""
        self.pool.end_step()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """See :meth:`Pool.forget_request`."""
        self._unkeyed.discard(req_context.req_id)
        self.pool.forget_request(req_context.req_id)
        self.log.finished(req_context.req_id)
        self._awaited.forget(req_context.req_id)

    def has_pending_work(self) -> bool:
        """Keep the engine stepping while spills run."""
        return self.pool.busy

    def take_events(self) -> Iterable[OffloadingEvent]:
        """What the tiers gained and lost."""
        for change in self.pool.events.take():
            medium, locality = _MEDIA[change.tier]
            yield OffloadingEvent([OffloadKey(key) for key in change.keys], medium, change.removed, locality=locality)

    def get_stats(self) -> OffloadingConnectorStats | None:
        """Counters as soon as there are any, gauges once a second: in a step that only decodes they would cost more than they
        tell, and a counter that waited for the next step could wait until the next request."""
        now = time.monotonic()
        if now < self._stats_at and not self.pool.counted:
            return None
        self._stats_at = now + _STATS_EVERY_S
        return collect(self.pool, self.shape, OffloadingConnectorStats())

    def reset_cache(self) -> None:
        """See :meth:`Pool.reset`. The remote store keeps its parts: other engines use them."""
        self.pool.reset()
        self.log.reset()

    def shutdown(self) -> None:
        """End the threads of presence, journal and adapters."""
        self.adapters.close()
        self.pool.close()
