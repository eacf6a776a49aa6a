"""The connector's configuration file, made through the connector's own model: what it would refuse is never written."""

from __future__ import annotations

import re
from typing import Any

from kvpool_connector.config import ConnectorConfig, parse, parse_quantity
from kvpool_operator.desired import disk
from kvpool_operator.desired.files import to_yaml
from kvpool_operator.desired.pool import Pool
from kvpool_operator.desired.stores import remotes

FILE = "kvpool.yaml"
DIRECTORY = "/etc/kvpool"
PASSWORD_DIRECTORY = remotes.PASSWORD_DIRECTORY
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
        "tiers": _tiers(pool),
        "tenant": pool.spec.isolation.tenant or "",
    }
    if revision and _COMMIT.fullmatch(revision):  # a branch moves, and would make different weights look alike
        content["model_revision"] = revision
    content |= connector.model_dump(
        include={"offload_generated_tokens", "chunk_tokens", "verify_one_in"}, exclude_none=True
    )
    for field in ("admission", "on_failure"):
        if (word := getattr(connector, field)) is not None:
            content[field] = word.lower()
    remote = remotes.remote(pool)
    if remote is not None:
        content["remote"] = remote
    return parse(content, f"KVCachePool {pool.namespace}/{pool.name}")


def _tiers(pool: Pool) -> dict[str, Any]:
    tiers = pool.spec.tiers
    cpu: dict[str, Any] = {"size": cpu_tier_bytes(pool)}
    if tiers.cpu and tiers.cpu.eviction_policy:
        cpu["eviction_policy"] = tiers.cpu.eviction_policy.lower()
    if tiers.disk is None:
        return {"cpu": cpu}
    files: dict[str, Any] = {"path": disk.directory(tiers.disk), "size": parse_quantity(tiers.disk.size)}
    if tiers.disk.eviction_policy:
        files["eviction_policy"] = tiers.disk.eviction_policy.lower()
    if tiers.disk.write_policy:
        files["write_policy"] = remotes.write_policy(tiers.disk.write_policy)
    return {"cpu": cpu, "disk": files}


def text(pool: Pool) -> str:
    """The file. Defaults are left out, so that a newer connector may have better ones."""
    content = {"version": 1, **build(pool).model_dump(mode="json", exclude_defaults=True)}
    return to_yaml(content)


def password_source(pool: Pool) -> tuple[str, str] | None:
    """Name and key of the Secret that has the store's password; None when the store asks for none."""
    sources = [source for source in remotes.password_sources(pool) if source.directory == PASSWORD_DIRECTORY]
    return (sources[0].secret, sources[0].key) if sources else None
