"""Filling the caches once, before the watches have shown anything."""

from __future__ import annotations

import logging

from kvpool_operator.desired.names import MANAGED_BY, MANAGED_BY_LABEL
from kvpool_operator.kube import CHILD_KINDS, POOL, Client, Refused
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.pools import Pools

_log = logging.getLogger(__name__)


async def prime(client: Client, pools: Pools, cache: Cache, namespaces: tuple[str, ...]) -> None:
    """Take over all pools and their children. A namespace that the operator may not look into is left out, and the
    watches bring it when they are let in.

    Args:
        namespaces: empty: all.

    Raises:
        ApiError: the API server can't be reached, or lets the operator in nowhere.
    """
    refused: list[Refused] = []
    for namespace in namespaces or ("",):
        try:
            await _prime(client, pools, cache, namespace)
        except Refused as error:
            _log.warning("namespace %s is left out: %s", namespace or "(all)", error.message)
            refused.append(error)
    if refused and len(refused) == len(namespaces or ("",)):
        raise refused[0]


async def _prime(client: Client, pools: Pools, cache: Cache, namespace: str) -> None:
    for body in await client.list(POOL, namespace, labels={}):
        pools.put(body)
    for kind in CHILD_KINDS:
        for body in await client.list(kind, namespace, labels={MANAGED_BY_LABEL: MANAGED_BY}):
            cache.put(body)
