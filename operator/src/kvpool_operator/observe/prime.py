"""Filling the caches once, before the watches have shown anything."""

from __future__ import annotations

from kvpool_operator.desired.names import MANAGED_BY, MANAGED_BY_LABEL
from kvpool_operator.kube import CHILD_KINDS, POOL, Client
from kvpool_operator.observe.cache import Cache, pool_of
from kvpool_operator.observe.gather import PoolKey
from kvpool_operator.observe.pools import Pools


async def prime(client: Client, pools: Pools, cache: Cache, namespaces: tuple[str, ...]) -> set[PoolKey]:
    """Take over all pools and their children.

    Returns:
        The pools of all that was found, also those that are gone: the watches will take these objects for known.

    Args:
        namespaces: empty: all.

    Raises:
        ApiError: the API server can't be reached or refused.
    """
    found: set[PoolKey] = set()
    for namespace in namespaces or ("",):
        for body in await client.list(POOL, namespace, labels={}):
            pools.put(body)
        for kind in CHILD_KINDS:
            for body in await client.list(kind, namespace, labels={MANAGED_BY_LABEL: MANAGED_BY}):
                cache.put(body)
                found.update(filter(None, (pool_of(body),)))
    return found
