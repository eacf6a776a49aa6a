"""The checks: each looks at one possible fault and says what to do about it. Order matters: the first finding is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvpool_connector.config import format_bytes
from kvpool_operator.api import Engine
from kvpool_operator.desired import Pool, engines, names, sizing
from kvpool_operator.desired.stores import redis
from kvpool_operator.status.observed import Observed, StoreState


@dataclass(frozen=True)
class Finding:
    """What a check found: the condition is not True, for this reason."""

    reason: str
    message: str
    status: str = "False"


Check = Callable[[Observed], Finding | None]


def spec_is_readable(seen: Observed) -> Finding | None:
    if seen.invalid is None:
        return None
    return Finding("InvalidSpec", f"the installed CRD let this in, but it can't be used: {seen.invalid}")


def not_judged(seen: Observed) -> Finding | None:
    """For conditions about things that are not touched while the spec can't be read."""
    return Finding("InvalidSpec", "not looked at, since the spec can't be read", "Unknown") if seen.invalid else None


def config_is_accepted(seen: Observed) -> Finding | None:
    if seen.invalid_config is None:
        return None
    return Finding("InvalidConfig", f"the connector would refuse this configuration: {seen.invalid_config}")


def config_was_written(seen: Observed) -> Finding | None:
    return refused(seen, "connector", "seed")


def store_was_written(seen: Observed) -> Finding | None:
    return refused(seen, redis.COMPONENT)


def engines_were_written(seen: Observed) -> Finding | None:
    return refused(seen, engines.COMPONENT)


def refused(seen: Observed, *components: str) -> Finding | None:
    faults = [refusal for refusal in seen.refusals if refusal.component in components]
    if not faults:
        return None
    text = "; ".join(f"{fault.kind} {fault.name}: {fault.message}" for fault in faults)
    return Finding("ApplyRefused", f"could not be written: {text}")


_STORE_FIXES = {
    StoreState.UNREACHABLE: "check spec.backend.external.host and port, and that a NetworkPolicy lets the operator and "
    "engines through",
    StoreState.AUTH_FAILED: "correct the password in the Secret that spec.backend.external.auth.secretRef names, or add "
    "the reference if there is none",
    StoreState.NO_DATABASE: "correct spec.backend.external.database, or leave it out",
    StoreState.SECRET_MISSING: "create it in the pool's namespace, or correct spec.backend.external.auth.secretRef",
}


def external_store_answers(seen: Observed) -> Finding | None:
    if seen.probe is None or seen.probe.state is StoreState.AVAILABLE:
        return None
    state = seen.probe.state
    message = f"{seen.probe.detail}; engines recompute until it is back: {_STORE_FIXES[state]}"
    return Finding(state.value, message)


def managed_store_is_ready(seen: Observed) -> Finding | None:
    if seen.pool is None or seen.pool.spec.managed_store is None:
        return None
    name = names.store(seen.pool)
    ready, wanted = replica_counts(seen, name)
    if ready >= max(wanted, 1):
        return None
    trouble = _troubles(seen, name)
    if trouble:
        return Finding("StorePodFailing", f"Deployment {name}: {trouble}")
    return Finding("StoreStarting", f"Deployment {name} has {ready} of {max(wanted, 1)} Pods ready")


def engine_memory_fits(seen: Observed) -> Finding | None:
    if seen.pool is None:
        return None
    faults = list(_tight_engines(seen.pool))
    return Finding("EngineMemoryTooSmall", "; ".join(faults)) if faults else None


def _tight_engines(pool: Pool) -> Iterator[str]:
    for place, engine in enumerate(pool.spec.engines):
        limit, sum_ = sizing.memory_limit(engine), sizing.needed(pool, engine)
        if limit is not None and limit < sum_.total:
            yield (
                f"engine {engine.name!r} may use {format_bytes(limit)} but needs {sum_}, and weights on top if they are "
                f"in memory: raise spec.engines[{place}].resources.limits.memory to at least "
                f"{sizing.quantity(sum_.total)}, or lower spec.tiers.cpu.size"
            )


def engine_pods_are_ready(seen: Observed) -> Finding | None:
    if seen.pool is None:
        return None
    late = [engine for engine in seen.pool.spec.engines if _missing(seen, seen.pool, engine)]
    if not late:
        return None
    failing = [
        f"{names.engine(seen.pool, engine)}: {trouble}"
        for engine in late
        if (trouble := _troubles(seen, names.engine(seen.pool, engine)))
    ]
    if failing:
        return Finding("EnginePodsFailing", "; ".join(failing))
    counts = ", ".join(
        f"{engine.name} {replica_counts(seen, names.engine(seen.pool, engine))[0]}/{engine.replicas}" for engine in late
    )
    return Finding("EnginesStarting", f"Pods ready with the current configuration: {counts}")


def _missing(seen: Observed, pool: Pool, engine: Engine) -> bool:
    return replica_counts(seen, names.engine(pool, engine))[0] < engine.replicas


def replica_counts(seen: Observed, deployment: str) -> tuple[int, int]:
    """Pods that are ready with the current template, and Pods wanted.

    A Deployment's status may be about an older spec; then nothing of it counts, or a rollout would look finished before
    it began.
    """
    body = seen.deployments.get(deployment, {})
    wanted = int(body.get("spec", {}).get("replicas", 0))
    status = body.get("status", {})
    if status.get("observedGeneration", -1) < body.get("metadata", {}).get("generation", 0):
        return 0, wanted
    return min(int(status.get("readyReplicas", 0)), int(status.get("updatedReplicas", 0))), wanted


def _troubles(seen: Observed, deployment: str) -> str:
    return "; ".join(
        f"Pod {trouble.pod}: {trouble.reason}{': ' if trouble.message else ''}{trouble.message}"
        for trouble in seen.troubles.get(deployment, ())
    )
