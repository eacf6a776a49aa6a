"""The question that vLLM asks for each key of a waiting prompt, up to 8000 times in a step."""

from __future__ import annotations

from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext

from kvpool_connector.scheduler.lookups import Lookup
from kvpool_connector.scheduler.pool import Pool
from kvpool_connector.vllm.adapters import AdapterCheck, Adapters

_RESULTS = {
    Lookup.HIT: LookupResult.HIT,
    Lookup.MISS: LookupResult.MISS,
    Lookup.PENDING: LookupResult.HIT_PENDING,
    Lookup.RETRY: LookupResult.RETRY,
}
_BY_NUMBER = [_RESULTS[lookup] for lookup in sorted(_RESULTS)]
_HIT = LookupResult.HIT


class PoolLookup:
    """A manager's lookups. The common case, a hit in memory and nothing special in this step, is
    spelled out, because a call of another method would cost as much as the answer."""

    def __init__(self, pool: Pool, adapters: Adapters) -> None:
        """Args:
        pool: of which those parts are kept at hand that stay the same for its life.
        """
        self._lookups, self._adapters = pool.lookups, adapters
        self._find, self._good = pool.index.find, pool.index.good
        self._promised = pool.lookups.promised

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """Return what :meth:`Lookups.lookup` says about the key, or about the one that takes its place
        where the request has an adapter."""
        if self._adapters.used and (check := req_context.get_state(AdapterCheck)) is not None:
            keys = check.keys([key])
            if not keys:
                return LookupResult.RETRY if check.waits else LookupResult.MISS
            key = OffloadKey(keys[0])
        slot = self._find(key)
        if slot is not None and self._good[slot] and not self._lookups.exceptional:
            self._promised.append(slot)
            return _HIT
        return _BY_NUMBER[self._lookups.lookup(key, req_context.req_id)]
