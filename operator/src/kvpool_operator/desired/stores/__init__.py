"""One module for each kind of store. ``build`` gives the children of a pool's store, ``workloads`` those that run Pods."""

from __future__ import annotations

from dataclasses import dataclass

from kvpool_operator.api import StoreType
from kvpool_operator.desired import names
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.stores import etcd, infinistore, lmcache, mooncake, parts, redis, sentinel

COMPONENTS = (parts.STORE, sentinel.COMPONENT, mooncake.MASTER, etcd.COMPONENT)
_QUORATE = (sentinel.COMPONENT, etcd.COMPONENT)


@dataclass(frozen=True)
class Workload:
    """A Deployment or StatefulSet of the store."""

    kind: str
    name: str
    component: str
    replicas: int

    @property
    def needed(self) -> int:
        """Pods without which the store does not work: a majority of those that vote, one of all others."""
        return self.replicas // 2 + 1 if self.component in _QUORATE else 1


def build(pool: Pool) -> list[Manifest]:
    """All children of the store that kvpool runs for this pool; none for an external one."""
    if pool.spec.uses_sentinels:
        return sentinel.build(pool)
    return [
        *redis.build(pool),
        *mooncake.build(pool),
        *lmcache.build(pool),
        *infinistore.build(pool),
    ]


def workloads(pool: Pool) -> tuple[Workload, ...]:
    """What runs the store's Pods."""
    return tuple(
        Workload(
            manifest["kind"],
            manifest["metadata"]["name"],
            manifest["metadata"]["labels"][names.COMPONENT_LABEL],
            manifest["spec"]["replicas"],
        )
        for manifest in build(pool)
        if manifest["kind"] in ("Deployment", "StatefulSet")
    )


def address(pool: Pool) -> str | None:
    """Where the store is, for people; None for a pool without one."""
    backend = pool.spec.backend
    if backend is None or not pool.spec.has_store:
        return None
    external = backend.external
    if external is not None:
        if external.sentinel is not None:
            return ",".join(map(str, external.sentinel.endpoints))
        return external.master or f"{external.host}:{external.port or DEFAULT_PORTS[backend.type]}"
    if pool.spec.uses_sentinels:
        return f"{names.service_host(pool, names.sentinel(pool))}:{sentinel.PORT}"
    if backend.type is StoreType.MOONCAKE:
        return mooncake.master_address(pool)
    return f"{names.service_host(pool, names.store(pool))}:{DEFAULT_PORTS[backend.type]}"


DEFAULT_PORTS = {
    StoreType.REDIS: redis.PORT,
    StoreType.VALKEY: redis.PORT,
    StoreType.MOONCAKE: mooncake.RPC_PORT,
    StoreType.LMCACHE_SERVER: lmcache.PORT,
    StoreType.INFINISTORE: infinistore.PORT,
}
