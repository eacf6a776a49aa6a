"""The connector's configuration file, made through the connector's own model: what it would refuse is never written."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kvpool_connector.config import ConnectorConfig, parse, parse_quantity
from kvpool_operator.api import StoreType
from kvpool_operator.desired import names
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.stores import redis

FILE = "kvpool.yaml"
DIRECTORY = "/etc/kvpool"
PASSWORD_DIRECTORY = "/etc/kvpool-store"  # noqa: S105  (a directory)
PASSWORD_FILE = f"{PASSWORD_DIRECTORY}/password"
STAGING = "512Mi"
"""Memory between GPU and store in a pool without a CPU tier of its own."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cpu_tier_bytes(pool: Pool) -> int:
    """Memory that the connector takes in each engine."""
    cpu = pool.spec.tiers.cpu
    return parse_quantity(cpu.size if cpu else STAGING)


def build(pool: Pool) -> ConnectorConfig:
    """The configuration of every engine of the pool.

    Raises:
        kvpool_connector.config.ConfigError: the spec asks for something that the connector refuses.
    """
    connector = pool.spec.connector
    revision = pool.spec.model.revision if pool.spec.model else None
    content: dict[str, Any] = {
        "pool": {"name": pool.name, "namespace": pool.namespace},
        "tiers": {"cpu": {"size": cpu_tier_bytes(pool)}},
        "tenant": pool.spec.isolation.tenant or "",
    }
    if revision and _COMMIT.fullmatch(revision):  # a branch moves, and would make different weights look alike
        content["model_revision"] = revision
    if connector.offload_generated_tokens is not None:
        content["offload_generated_tokens"] = connector.offload_generated_tokens
    remote = _remote(pool)
    if remote is not None:
        content["remote"] = remote
    return parse(content, f"KVCachePool {pool.namespace}/{pool.name}")


def _remote(pool: Pool) -> dict[str, Any] | None:
    backend, connector = pool.spec.backend, pool.spec.connector
    if backend is None or backend.type is StoreType.NONE:
        return None
    remote: dict[str, Any] = {"type": backend.type.lower()}
    if backend.external is None:
        remote |= {
            "host": names.service_host(pool, names.store(pool)),
            "port": redis.PORT,
            "username": redis.USERNAME,
            "password_file": PASSWORD_FILE,
        }
    else:
        external = backend.external
        remote |= {"host": external.host, "port": external.port, "database": external.database}
        if external.auth is not None:
            remote["password_file"] = PASSWORD_FILE
            if pool.material.external_username:
                remote["username"] = pool.material.external_username
    if connector.ttl_seconds is not None:
        remote["ttl_s"] = connector.ttl_seconds
    if connector.timeouts is not None:
        remote["timeouts"] = connector.timeouts.model_dump(exclude_none=True)
    return remote


def text(pool: Pool) -> str:
    """The file. Defaults are left out, so that a newer connector may have better ones."""
    content = {"version": 1, **build(pool).model_dump(mode="json", exclude_defaults=True)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def config_hash(pool: Pool) -> str:
    """Changes with everything that an engine reads once, at its start."""
    return digest(
        {"file": text(pool), "seed": pool.material.seed_secret_uid, "password": pool.material.store_secret_uid}
    )


def build_configmap(pool: Pool) -> Manifest:
    labels = names.labels(pool, "connector")
    return names.child(pool, "v1", "ConfigMap", names.connector(pool), labels) | {"data": {FILE: text(pool)}}


def password_source(pool: Pool) -> tuple[str, str] | None:
    """Name and key of the Secret that has the store's password; None when the store asks for none."""
    backend = pool.spec.backend
    if backend is None or backend.type is StoreType.NONE:
        return None
    if backend.external is None:
        return names.store_auth(pool), redis.PASSWORD_KEY
    if backend.external.auth is None:
        return None
    reference = backend.external.auth.secret_ref
    return reference.name, reference.password_key
