"""What the status says about the type of connector: its server's Pods, and what a pool of this type has to live without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_connector.config import format_bytes
from kvpool_operator.api.connector_types import LIMITS, ConnectorType
from kvpool_operator.desired import Pool, names, sizing
from kvpool_operator.desired.connectors import lmcache_mp
from kvpool_operator.status.checks import Finding, children_are_known
from kvpool_operator.status.observed import Observed


def limits(pool: Pool | None) -> str:
    """For people, to follow a sentence; empty where there is nothing to say."""
    text = LIMITS[pool.spec.connector.type] if pool else ""
    return f"; note that {text}" if text else ""


def server_is_ready(seen: Observed) -> Finding | None:
    """LMCache's server on each node: an engine that starts before it serves without a cache."""
    pool = seen.pool
    if pool is None or pool.spec.connector.type is not ConnectorType.LMCACHE_MP:
        return None
    name = names.lmcache(pool)
    ready, wanted = pods_of(seen.daemon_sets.get(name, {}))
    if ready >= wanted > 0:
        return None
    return Finding("ConnectorServerStarting", f"DaemonSet {name} has {ready} of {wanted} Pods ready: see its Pods")


def server_memory_fits(seen: Observed) -> Finding | None:
    """LMCache's server takes its tier at its start; a Pod template of the user's may give it less."""
    pool = seen.pool
    if pool is None or pool.spec.connector.type is not ConnectorType.LMCACHE_MP:
        return None
    if (unknown := children_are_known(seen)) is not None:
        return unknown
    spec = seen.daemon_sets.get(names.lmcache(pool), {}).get("spec", {}).get("template", {}).get("spec", {})
    containers: list[dict[str, Any]] = [
        one for one in spec.get("containers", ()) if one["name"] == names.LMCACHE_CONTAINER
    ]
    limits = containers[0].get("resources", {}).get("limits") if containers else None
    limit, needed = sizing.memory_limit(limits), lmcache_mp.memory(pool)
    if limit is None or limit >= needed:
        return None
    return Finding(
        "ConnectorServerMemoryTooSmall",
        f"LMCache's server may use {format_bytes(limit)} on each node but needs {format_bytes(needed)}, the tier and the "
        f"server itself: raise the memory limit in spec.connector.server.podTemplate to at least {sizing.quantity(needed)}, "
        "or lower spec.tiers.cpu.size",
    )


def pods_of(daemon_set: Mapping[str, Any]) -> tuple[int, int]:
    """Pods that are ready with the current template, and Pods wanted; (0, 0) while the status is about an older spec."""
    status = daemon_set.get("status", {})
    if status.get("observedGeneration", -1) < daemon_set.get("metadata", {}).get("generation", 0):
        return 0, 0
    ready = min(int(status.get("numberReady", 0)), int(status.get("updatedNumberScheduled", 0)))
    return ready, int(status.get("desiredNumberScheduled", 0))
