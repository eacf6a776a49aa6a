"""From findings to ``status``: one condition for each chain of checks, and Ready over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvpool_operator.api import StoreType
from kvpool_operator.desired import Pool, names, stores
from kvpool_operator.status import checks, connector, consumers, rollout
from kvpool_operator.status.checks import Check, Finding
from kvpool_operator.status.observed import Observed

_CHAINS: Mapping[str, tuple[Check, ...]] = {
    "ConfigRendered": (
        checks.spec_is_readable,
        checks.not_judged,
        checks.config_is_accepted,
        checks.config_was_written,
        checks.children_are_as_wanted,
        checks.api_server_answered,
    ),
    "SizingValid": (checks.not_judged, checks.engine_memory_fits, connector.server_memory_fits),
    "BackendAvailable": (
        checks.not_judged,
        checks.store_was_written,
        checks.external_store_answers,
        checks.children_are_known,
        checks.etcd_has_a_quorum,
        checks.managed_store_is_ready,
        checks.api_server_answered,
    ),
    "EnginesReady": (
        checks.not_judged,
        checks.engines_were_written,
        checks.children_are_known,
        connector.server_is_ready,
        checks.engine_pods_are_ready,
        checks.api_server_answered,
    ),
    "InjectionReady": (
        checks.not_judged,
        consumers.grants_were_written,
        consumers.secret_can_be_shared,
        consumers.namespaces_take_the_pool,
        consumers.pods_use_the_pool,
        checks.children_are_as_wanted,
        checks.api_server_answered,
        consumers.pods_are_up_to_date,
    ),
    "UpToDate": (
        checks.not_judged,
        checks.api_server_answered,
        rollout.was_planned,
        rollout.claims_are_possible,
        rollout.nothing_waits,
    ),
}
"""Also the order in which Ready names causes: a broken configuration explains engines that don't start."""
_APART = {"InjectionReady", "UpToDate"}
"""Not part of Ready: neither a consumer that somebody started wrongly nor Pods that wait for a restart keep the pool from
serving."""


def build_status(seen: Observed, previous: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The whole status.

    Args:
        previous: the status that the object has; transition times are kept from it.
        now: the time, as Kubernetes writes it.
    """
    findings = {kind: _first(chain, seen) or _all_is_well(kind, seen) for kind, chain in _CHAINS.items()}
    conditions = {"Ready": _ready(findings, seen), **findings}
    before = {condition["type"]: condition for condition in previous.get("conditions", ())}
    return {
        "observedGeneration": seen.generation,
        "conditions": [
            _condition(kind, finding, before.get(kind, {}), seen.generation, now)
            for kind, finding in conditions.items()
        ],
        **(_facts(seen) if seen.pool else {}),
    }


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two statuses say the same. Times are not part of what they say."""
    return _without_times(one) == _without_times(other)


def _without_times(status: Mapping[str, Any]) -> dict[str, Any]:
    conditions = {
        condition["type"]: {key: value for key, value in condition.items() if key != "lastTransitionTime"}
        for condition in status.get("conditions", ())
    }
    return {**status, "conditions": conditions}


def _first(chain: tuple[Check, ...], seen: Observed) -> Finding | None:
    return next((finding for check in chain if (finding := check(seen)) is not None), None)


def _all_is_well(kind: str, seen: Observed) -> Finding:
    pool = seen.pool
    backend = pool.spec.backend if pool else None
    texts: dict[str, Callable[[], tuple[str, str]]] = {
        "ConfigRendered": lambda: ("Rendered", f"the connector's configuration is in place{connector.limits(pool)}"),
        "SizingValid": lambda: ("Fits", "memory limits of engines leave room for the tiers"),
        "BackendAvailable": lambda: (
            ("NoStore", "the pool has no shared store; each engine keeps its own tier")
            if backend is None or not (pool and pool.spec.has_store)
            else _store_is_well(seen, backend.type)
        ),
        "EnginesReady": lambda: (
            ("EnginesReady", "all engines are ready")
            if pool and pool.spec.engines
            else ("NoEngines", "the pool has no engines of its own")
        ),
        "InjectionReady": lambda: consumers.all_is_well(seen),
        "UpToDate": lambda: ("UpToDate", "every workload has the Pods that are wanted"),
    }
    reason, message = texts[kind]()
    return Finding(reason, message, "True")


_LIMITS = {
    StoreType.LMCACHE_SERVER: "it has no eviction and no replication: it grows to its memory limit, is then restarted, and is "
    "empty",
    StoreType.INFINISTORE: "experimental: kvpool's authors never ran it, since they have no RDMA devices",
}
"""What a user has to know about a store that works."""


def _store_is_well(seen: Observed, kind: StoreType) -> tuple[str, str]:
    lacking = checks.store_lacks(seen)
    if lacking:
        return "StoreDegraded", f"{kind} answers, but {lacking}"
    return "StoreReady", f"{kind} answers; {_LIMITS[kind]}" if kind in _LIMITS else f"{kind} answers"


def _ready(findings: Mapping[str, Finding], seen: Observed) -> Finding:
    paused = bool(seen.pool and seen.pool.spec.paused)
    note = " (spec.paused is true: children are left as they are)" if paused else ""
    # Two rounds, so that what could not be judged never hides the fault that is the cause.
    for wanted in ("False", "Unknown"):
        for kind, finding in findings.items():
            if finding.status == wanted and kind not in _APART:
                return Finding(finding.reason, f"{kind}: {finding.message}{note}", wanted)
    return Finding("Paused" if paused else "AllReady", f"the pool serves{note}", "True")


def _condition(kind: str, finding: Finding, before: Mapping[str, Any], generation: int, now: str) -> dict[str, Any]:
    unchanged = before.get("status") == finding.status
    return {
        "type": kind,
        "status": finding.status,
        "reason": finding.reason,
        "message": finding.message[:32768],
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if unchanged else now,
    }


def _facts(seen: Observed) -> dict[str, Any]:
    pool = seen.pool
    assert pool is not None  # noqa: S101  (the caller looked)
    engines = [(engine, names.engine(pool, engine)) for engine in pool.spec.engines]
    facts: dict[str, Any] = {
        "store": _store_word(seen),
        "endpoints": {
            "engines": [
                {"name": engine.name, "url": f"http://{names.service_host(pool, service)}:{engine.port}"}
                for engine, service in engines
            ]
        },
    }
    address = stores.address(pool)
    if address:
        facts["endpoints"]["store"] = address
    if seen.children_known:
        facts |= _engine_counts(seen, pool)
    facts |= consumers.facts(seen)
    facts |= rollout.facts(seen)
    if seen.invalid_config is None and seen.config_hash:
        facts["config"] = {"hash": seen.config_hash}
    return facts


def _engine_counts(seen: Observed, pool: Pool) -> dict[str, Any]:
    """Return how many Pods of each engine are ready, and of all of them."""
    ready = [checks.replica_counts(seen, names.engine(pool, engine))[0] for engine in pool.spec.engines]
    wanted = [checks.wanted(seen, pool, engine) for engine in pool.spec.engines]
    return {
        "enginesReady": f"{sum(ready)}/{sum(wanted)}",
        "engines": [
            {"name": engine.name, "ready": count, "desired": desired}
            for engine, count, desired in zip(pool.spec.engines, ready, wanted, strict=True)
        ],
    }


def _store_word(seen: Observed) -> str:
    backend = seen.pool.spec.backend if seen.pool else None
    if backend is None:
        return "None"
    word = f"{backend.type} Sentinel" if backend.mode == "Sentinel" else str(backend.type)
    return f"{word} (external)" if backend.external else word
