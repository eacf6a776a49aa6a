"""How engines reach the store: the ``remote`` section of the connector's file, and what their Pods need for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvpool_operator.api import Backend, StoreType
from kvpool_operator.api.external import Auth, External
from kvpool_operator.desired import names, stores
from kvpool_operator.desired.pool import Pool
from kvpool_operator.desired.stores import mooncake, redis, sentinel

PASSWORD_DIRECTORY = "/etc/kvpool-store"  # noqa: S105  (a directory)
PASSWORD_FILE = f"{PASSWORD_DIRECTORY}/password"
SENTINEL_PASSWORD_DIRECTORY = "/etc/kvpool-sentinel"  # noqa: S105
SENTINEL_PASSWORD_FILE = f"{SENTINEL_PASSWORD_DIRECTORY}/password"
_TYPES = {
    StoreType.REDIS: "redis",
    StoreType.VALKEY: "valkey",
    StoreType.MOONCAKE: "mooncake",
    StoreType.LMCACHE_SERVER: "lmcache",
    StoreType.INFINISTORE: "infinistore",
}
_WRITE_POLICIES = {"WriteThrough": "write_through", "WriteBack": "write_back", "Selective": "selective"}


@dataclass(frozen=True)
class PasswordSource:
    """A key of a Secret, and the directory in which engines find it as the file ``password``."""

    volume: str
    secret: str
    key: str
    directory: str


def password_sources(pool: Pool) -> tuple[PasswordSource, ...]:
    """What engines mount: the store's password, and that of external sentinels. Empty when nobody asks for one."""
    backend = pool.spec.backend
    if backend is None or not backend.is_redis:
        return ()
    if backend.external is None:
        return (PasswordSource("store-auth", names.store_auth(pool), redis.PASSWORD_KEY, PASSWORD_DIRECTORY),)
    sentinels = backend.external.sentinel
    sources = [_source("store-auth", backend.external.auth, PASSWORD_DIRECTORY)]
    sources.append(_source("sentinel-auth", sentinels.auth if sentinels else None, SENTINEL_PASSWORD_DIRECTORY))
    return tuple(source for source in sources if source is not None)


def _source(volume: str, auth: Auth | None, directory: str) -> PasswordSource | None:
    if auth is None:
        return None
    return PasswordSource(volume, auth.secret_ref.name, auth.secret_ref.password_key, directory)


def remote(pool: Pool) -> dict[str, Any] | None:
    """The section; None for a pool without a store."""
    backend, connector = pool.spec.backend, pool.spec.connector
    if backend is None or not pool.spec.has_store:
        return None
    section: dict[str, Any] = {"type": _TYPES[backend.type], **_where(pool, backend)}
    if connector.ttl_seconds is not None:
        section["ttl_s"] = connector.ttl_seconds
    if connector.timeouts is not None:
        section["timeouts"] = connector.timeouts.model_dump(exclude_none=True)
    if backend.write_policy is not None:
        section["write_policy"] = write_policy(backend.write_policy)
    return section


def write_policy(name: str) -> str:
    """As the connector's file has it."""
    return _WRITE_POLICIES[name]


def _where(pool: Pool, backend: Backend) -> dict[str, Any]:
    if backend.type is StoreType.MOONCAKE:
        return _mooncake(pool, backend)
    external = backend.external
    if backend.is_redis:
        return _external_redis(pool, external) if external else _managed_redis(pool)
    own = backend.infinistore
    host = external.host if external else names.service_host(pool, names.store(pool))
    section: dict[str, Any] = {
        "host": host,
        "port": (external.port if external else None) or stores.DEFAULT_PORTS[backend.type],
    }
    if own is not None:
        section |= {"experimental": own.experimental, "link_type": own.link_type}
        section |= {"device": own.device} if own.device else {}
    return section


def _managed_redis(pool: Pool) -> dict[str, Any]:
    login = {"username": redis.USERNAME, "password_file": PASSWORD_FILE}
    if not pool.spec.uses_sentinels:
        return {"host": names.service_host(pool, names.store(pool)), "port": redis.PORT, **login}
    endpoints = [{"host": host, "port": sentinel.PORT} for host in sentinel.sentinel_hosts(pool)]
    return {"sentinel": {"master_name": sentinel.MASTER_NAME, "endpoints": endpoints, **login}, **login}


def _external_redis(pool: Pool, external: External) -> dict[str, Any]:
    section: dict[str, Any] = {"database": external.database or 0}
    if external.sentinel is not None:
        sentinels: dict[str, Any] = {
            "master_name": external.sentinel.master_name,
            "endpoints": [endpoint.model_dump() for endpoint in external.sentinel.endpoints],
        }
        if external.sentinel.auth is not None:
            sentinels |= _login(pool.material.sentinel_username, SENTINEL_PASSWORD_FILE)
        section["sentinel"] = sentinels
    else:
        section |= {"host": external.host, "port": external.port or redis.PORT}
    if external.auth is not None:
        section |= _login(pool.material.external_username, PASSWORD_FILE)
    return section


def _login(username: str, file: str) -> dict[str, Any]:
    return {"password_file": file, **({"username": username} if username else {})}


def _mooncake(pool: Pool, backend: Backend) -> dict[str, Any]:
    own, external = mooncake.settings(backend), backend.external
    section: dict[str, Any] = {
        "master": external.master if external else mooncake.master_address(pool),
        "metadata_server": (
            external.metadata_server or mooncake.P2P if external else mooncake.metadata_server(pool, backend)
        ),
        "protocol": own.protocol.lower(),
        "replicas": own.copies,
    }
    if own.rdma is not None and own.rdma.devices:
        section["devices"] = own.rdma.devices
    return section


def rdma_resource(pool: Pool) -> str | None:
    """The device plugin's resource that an engine needs to reach the store."""
    backend = pool.spec.backend
    if backend is None:
        return None
    if backend.infinistore is not None:
        return backend.infinistore.rdma_resource
    own = backend.mooncake
    return own.rdma.resource if own and own.protocol == "RDMA" and own.rdma else None
