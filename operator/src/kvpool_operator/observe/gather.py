"""Reads of one pool: the object itself, its children, an external store, and Pods where some are missing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvpool_operator.api import KVCachePoolSpec, Settings
from kvpool_operator.api.spec import External
from kvpool_operator.desired import Pool, engines, names
from kvpool_operator.desired.stores import redis
from kvpool_operator.kube import (
    CHILD_KINDS,
    CONFIG_MAP,
    DEPLOYMENT,
    POD,
    POOL,
    SECRET,
    Client,
    NotFound,
    Refused,
    Resource,
)
from kvpool_operator.observe.cache import Cache, owner_uid
from kvpool_operator.observe.pods import troubles
from kvpool_operator.observe.probe import Target, probe
from kvpool_operator.observe.secrets import decoded
from kvpool_operator.status.checks import replica_counts
from kvpool_operator.status.observed import Consumer, Observed, PodTrouble, StoreProbe, StoreState

PoolKey = tuple[str, str]
"""Namespace and name."""


class Observer:
    """All reads. One for the operator's life; its caches are per pool."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        settings: Settings,
        clock: Callable[[], float],
        consumers_of: Callable[[PoolKey], tuple[Consumer, ...]],
    ) -> None:
        self._client = client
        self._cache = cache
        self._consumers_of = consumers_of
        self._settings = settings
        self._clock = clock
        self._listed: dict[PoolKey, float] = {}
        self._probed: dict[PoolKey, tuple[float, External, StoreProbe, str]] = {}

    async def pool(self, key: PoolKey) -> dict[str, Any] | None:
        """The pool as it is now. A cached one could be a deleted one, whose children would be made again."""
        try:
            return await self._client.get(POOL, *key)
        except NotFound:
            return None

    def forget(self, key: PoolKey) -> None:
        self._cache.forget(*key)
        self._listed.pop(key, None)
        self._probed.pop(key, None)

    async def refresh_children(self, key: PoolKey, granted: Iterable[str]) -> None:
        """List the children when nobody did for a while: a watch that reconnects does not report what it missed.

        Args:
            granted: namespaces in which copies may be, beside those where some are known.
        """
        now = self._clock()
        if now - self._listed.get(key, float("-inf")) < self._settings.resync_seconds:
            return
        namespace, name = key
        labels = {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.POOL_LABEL: name}
        lists = [self._client.list(kind, namespace, labels=labels) for kind in CHILD_KINDS]
        known = {str(body["metadata"]["namespace"]) for body in self.children(key)}
        elsewhere = sorted(known.union(granted) - {namespace})
        copies = {**labels, names.POOL_NAMESPACE_LABEL: namespace}
        lists += [self._list_copies(kind, other, copies) for other in elsewhere for kind in (CONFIG_MAP, SECRET)]
        self._cache.replace(namespace, name, [body for bodies in await asyncio.gather(*lists) for body in bodies])
        self._listed[key] = now

    async def _list_copies(self, kind: Resource, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """A namespace that the operator may not look into has no copies; applying them says so."""
        try:
            return await self._client.list(kind, namespace, labels=labels)
        except Refused:
            return []

    def children(self, key: PoolKey) -> tuple[Mapping[str, Any], ...]:
        return self._cache.children(*key)

    async def store_probe(self, key: PoolKey, spec: KVCachePoolSpec) -> tuple[StoreProbe | None, str]:
        """The state of an external store, at most ``probe_seconds`` old, and the user name that its Secret holds."""
        external = spec.backend.external if spec.backend and spec.has_store else None
        if external is None:
            return None, ""
        now = self._clock()
        known = self._probed.get(key)
        if known is not None and known[1] == external and now - known[0] < self._settings.probe_seconds * 0.9:
            return known[2], known[3]
        result, username = await self._probe(key[0], external)
        self._probed[key] = now, external, result, username
        return result, username

    async def _probe(self, namespace: str, external: External) -> tuple[StoreProbe, str]:
        username, password = "", None
        if external.auth is not None:
            reference = external.auth.secret_ref
            try:
                secret = await self._client.get(SECRET, namespace, reference.name)
            except NotFound:
                return StoreProbe(StoreState.SECRET_MISSING, f"Secret {reference.name} does not exist"), ""
            for wanted in filter(None, (reference.password_key, reference.username_key)):
                if not decoded(secret, wanted):
                    return StoreProbe(StoreState.SECRET_MISSING, f"Secret {reference.name} has no key {wanted}"), ""
            password = decoded(secret, reference.password_key)
            username = decoded(secret, reference.username_key) if reference.username_key else ""
        target = Target(external.host, external.port, external.database, username, password)
        return await probe(target), username

    async def look(self, pool: Pool, seen: Observed) -> Observed:
        """``seen`` with the Deployments of the pool, what keeps Pods from running where some are missing, and consumers."""
        deployments = {
            str(body["metadata"]["name"]): body
            for body in self._cache.children(pool.namespace, pool.name)
            if body["kind"] == DEPLOYMENT.kind and owner_uid(body) == pool.uid
        }
        allowed = {pool.namespace, *pool.spec.injection.allowed_namespaces}
        found_consumers = self._consumers_of((pool.namespace, pool.name))
        consumers = tuple(one for one in found_consumers if one.namespace in allowed)
        seen = dataclasses.replace(seen, deployments=deployments, consumers=consumers)
        found = await asyncio.gather(*(self._troubles(pool, seen, name) for name in deployments))
        return dataclasses.replace(seen, troubles=dict(zip(deployments, found, strict=True)))

    async def _troubles(self, pool: Pool, seen: Observed, deployment: str) -> tuple[PodTrouble, ...]:
        ready, wanted = replica_counts(seen, deployment)
        if ready >= wanted:
            return ()
        engine = next((engine for engine in pool.spec.engines if names.engine(pool, engine) == deployment), None)
        selector = (
            names.selector(pool, engines.COMPONENT, engine.name) if engine else names.selector(pool, redis.COMPONENT)
        )
        return troubles(await self._client.list(POD, pool.namespace, labels=selector, cached=True))
