"""Reads of one pool: the object itself, its children, an external store, and Pods where some are missing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvpool_operator.api import KVCachePoolSpec, Settings
from kvpool_operator.api.consent import CREDENTIALS_LABEL
from kvpool_operator.api.external import Auth
from kvpool_operator.desired import Pool, engines, names, stores
from kvpool_operator.kube import (
    CONFIG_MAP,
    DAEMON_SET,
    POD,
    POOL,
    SECRET,
    ApiError,
    Client,
    NotFound,
    Refused,
    Resource,
)
from kvpool_operator.observe.api_servers import ApiServers
from kvpool_operator.observe.cache import Cache, owner_uid
from kvpool_operator.observe.dial import Dialer
from kvpool_operator.observe.external import Login, has_external, probe_external
from kvpool_operator.observe.pods import troubles
from kvpool_operator.observe.relist import Relists
from kvpool_operator.observe.secrets import decoded
from kvpool_operator.status.checks import replica_counts
from kvpool_operator.status.observed import Consumer, Observed, PodTrouble, StoreProbe, StoreState

PoolKey = tuple[str, str]
"""Namespace and name."""
Usernames = tuple[str, str]
"""Of an external store and of its sentinels, from the user's Secrets; empty: the default user."""


class _SecretWithheld(Exception):
    """A Secret that the spec refers to can't be used."""

    def __init__(self, state: StoreState, detail: str) -> None:
        super().__init__(detail)
        self.probe = StoreProbe(state, detail)


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
        self._dial = Dialer(settings.probes, ApiServers(client, clock).hosts)
        self._clock = clock
        self._relists = Relists(client, cache, settings.watch_namespaces, seconds=settings.resync_seconds, clock=clock)
        self._listed: dict[PoolKey, float] = {}
        self._probed: dict[PoolKey, tuple[float, KVCachePoolSpec, StoreProbe, Usernames]] = {}

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

    async def refresh_children(self, key: PoolKey, consenting: Iterable[str]) -> None:
        """List the children when nobody did for a while: a watch that reconnects does not report what it missed.

        Args:
            consenting: namespaces in which copies may be, beside those where some are known.
        """
        namespace, name = key
        await self._relists.refresh(namespace)
        now = self._clock()
        if now - self._listed.get(key, float("-inf")) < self._settings.resync_seconds:
            return
        known = {str(body["metadata"]["namespace"]) for body in self.children(key)}
        unwatched = sorted(other for other in known.union(consenting) if not self._relists.covers(other))
        labels = {
            names.MANAGED_BY_LABEL: names.MANAGED_BY,
            names.POOL_LABEL: name,
            names.POOL_NAMESPACE_LABEL: namespace,
        }
        lists = [self._list_copies(kind, other, labels) for other in unwatched for kind in (CONFIG_MAP, SECRET)]
        copies = [body for bodies in await asyncio.gather(*lists) for body in bodies]
        watched = [body for body in self.children(key) if body["metadata"]["namespace"] not in unwatched]
        self._cache.replace(namespace, name, [*watched, *copies])
        self._listed[key] = now

    def knows_children(self, key: PoolKey) -> bool:
        """Whether the children were ever listed. Watches tell of changes since then."""
        return key in self._listed

    async def _list_copies(self, kind: Resource, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """A namespace that the operator may not look into has no copies; applying them says so."""
        try:
            return await self._client.list(kind, namespace, labels=labels)
        except Refused:
            return []

    def children(self, key: PoolKey) -> tuple[Mapping[str, Any], ...]:
        return self._cache.children(*key)

    async def store_probe(self, key: PoolKey, spec: KVCachePoolSpec) -> tuple[StoreProbe | None, Usernames]:
        """The state of an external store or etcd, at most ``probe_seconds`` old, and the user names that its Secrets hold."""
        backend = spec.backend
        if backend is None or not has_external(spec):
            return None, ("", "")
        now = self._clock()
        known = self._probed.get(key)
        if known is not None and known[1].backend == backend and now - known[0] < self._settings.probe_seconds * 0.9:
            return known[2], known[3]
        result, usernames = await self._probe(key[0], spec)
        self._probed[key] = now, spec, result, usernames
        return result, usernames

    async def _probe(self, namespace: str, spec: KVCachePoolSpec) -> tuple[StoreProbe, Usernames]:
        external = spec.backend.external if spec.backend else None
        sentinels = external.sentinel if external else None
        try:
            store_login = await self._login(namespace, external.auth if external else None)
            sentinel_login = await self._login(namespace, sentinels.auth if sentinels else None)
        except _SecretWithheld as reason:
            return reason.probe, ("", "")
        found = await probe_external(self._dial, spec, store_login, sentinel_login)
        return found, (store_login.username, sentinel_login.username)

    async def _login(self, namespace: str, auth: Auth | None) -> Login:
        if auth is None:
            return Login()
        reference = auth.secret_ref
        try:
            secret = await self._client.get(SECRET, namespace, reference.name)
        except NotFound:
            raise _SecretWithheld(StoreState.SECRET_MISSING, f"Secret {reference.name} does not exist") from None
        except ApiError as error:
            detail = f"Secret {reference.name} could not be read: {error.message}"
            raise _SecretWithheld(StoreState.NOT_LOOKED_AT, detail) from None
        if (secret["metadata"].get("labels") or {}).get(CREDENTIALS_LABEL) != "true":
            detail = (
                f"Secret {reference.name} lacks the label {CREDENTIALS_LABEL}=true, so no pool may send it to a store"
            )
            raise _SecretWithheld(StoreState.SECRET_NOT_OFFERED, detail)
        for wanted in filter(None, (reference.password_key, reference.username_key)):
            if not decoded(secret, wanted):
                raise _SecretWithheld(StoreState.SECRET_MISSING, f"Secret {reference.name} has no key {wanted}")
        username = decoded(secret, reference.username_key) if reference.username_key else ""
        return Login(username, decoded(secret, reference.password_key))

    async def look(self, seen: Observed) -> Observed:
        """``seen`` with what runs the Pods of the pool, what keeps Pods from running where some are missing, and consumers."""
        pool = seen.pool
        assert pool is not None  # noqa: S101  (the caller looked)
        components = {workload.name: (workload.kind, workload.component) for workload in stores.workloads(pool)}
        components |= {
            names.engine(pool, engine): (engines.kind(pool), engines.COMPONENT) for engine in pool.spec.engines
        }
        found = {
            name: body
            for name, (kind, _) in components.items()
            if (body := self._cache.get((kind, pool.namespace, name))) is not None and owner_uid(body) == pool.uid
        }
        allowed = {pool.namespace, *pool.spec.injection.allowed_namespaces}
        found_consumers = self._consumers_of((pool.namespace, pool.name))
        consumers = tuple(one for one in found_consumers if one.namespace in allowed)
        server = self._cache.get((DAEMON_SET.kind, pool.namespace, names.lmcache(pool)))
        daemon_sets = {names.lmcache(pool): server} if server is not None and owner_uid(server) == pool.uid else {}
        seen = dataclasses.replace(seen, workloads=found, daemon_sets=daemon_sets, consumers=consumers)
        troubled = await asyncio.gather(*(self._troubles(pool, seen, name, components[name][1]) for name in found))
        return dataclasses.replace(seen, troubles=dict(zip(found, troubled, strict=True)))

    async def _troubles(self, pool: Pool, seen: Observed, workload: str, component: str) -> tuple[PodTrouble, ...]:
        ready, wanted = replica_counts(seen, workload)
        if ready >= wanted:
            return ()
        engine = next((engine for engine in pool.spec.engines if names.engine(pool, engine) == workload), None)
        selector = names.selector(pool, component, engine.name if engine else None)
        try:
            pods = await self._client.list(POD, pool.namespace, labels=selector, cached=True)
        except ApiError:
            return ()  # the condition says how many Pods are missing, without their reasons
        return troubles(pods)
