"""The checks: each looks at one possible fault and says what to do about it. Order matters: the first finding is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvpool_connector.config import format_bytes
from kvpool_operator.api import Engine
from kvpool_operator.api.consent import CREDENTIALS_LABEL
from kvpool_operator.desired import Pool, engines, names, sizing, stores
from kvpool_operator.desired.connectors import lmcache_mp
from kvpool_operator.desired.scaling import wanted_replicas
from kvpool_operator.desired.stores import Workload, etcd
from kvpool_operator.status.observed import WITHHELD, Observed, StoreState


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
    return Finding("InvalidSpec", f"the API server let this in, but it can't be used: {seen.invalid}")


def not_judged(seen: Observed) -> Finding | None:
    """For conditions about things that are not touched while the spec can't be read."""
    if seen.fault:
        return Finding("OperatorFault", "not looked at: a fault of the operator, see its log", "Unknown")
    return Finding("InvalidSpec", "not looked at, since the spec can't be read", "Unknown") if seen.invalid else None


def api_server_answered(seen: Observed) -> Finding | None:
    """The last check of a chain: what was found before it is certain, and that nothing was found is not."""
    if not seen.unanswered:
        return None
    text = "; ".join(f"{call.what}: {call.message}" for call in seen.unanswered)
    return Finding(
        "ApiServerFailing", f"the API server did not do what was asked, it is asked again: {text}", "Unknown"
    )


def children_are_known(seen: Observed) -> Finding | None:
    """Come before what is judged by the pool's objects: an operator that could not list them sees none."""
    return None if seen.children_known else api_server_answered(seen)


def children_are_as_wanted(seen: Observed) -> Finding | None:
    """Nothing is written while a Secret can't be used or made. The store's condition says what to do about that."""
    if seen.held is None or seen.unanswered:
        return None
    reason = seen.probe.state.value if seen.probe and not seen.refusals else "ApplyRefused"
    return Finding(reason, f"the pool's objects are left as they are: {seen.held}", "Unknown")


def config_is_accepted(seen: Observed) -> Finding | None:
    if seen.invalid_config is None:
        return None
    return Finding("InvalidConfig", f"the connector would refuse this configuration: {seen.invalid_config}")


def config_was_written(seen: Observed) -> Finding | None:
    return refused(seen, "connector", "seed")


def store_was_written(seen: Observed) -> Finding | None:
    return refused(seen, *stores.COMPONENTS)


def engines_were_written(seen: Observed) -> Finding | None:
    return refused(seen, engines.COMPONENT, lmcache_mp.COMPONENT)


def refused(seen: Observed, *components: str) -> Finding | None:
    faults = [refusal for refusal in seen.refusals if refusal.component in components]
    if not faults:
        return None
    text = "; ".join(f"{fault.kind} {fault.name}: {fault.message}" for fault in faults)
    return Finding("ApplyRefused", f"could not be written: {text}")


_STORE_FIXES = {
    StoreState.UNREACHABLE: "check spec.backend.external.host and port, and that a NetworkPolicy lets the operator and "
    "engines through",
    StoreState.ADDRESS_REFUSED: "use the address of the store itself, or have it taken out of the operator's setting "
    "probes.refusedNetworks (loopback, link-local, multicast; the API server by probes.refuseApiServer)",
    StoreState.UNKNOWN_MASTER: "set spec.backend.external.sentinel.masterName to the name after 'sentinel monitor' in "
    "sentinel.conf",
    StoreState.NO_QUORUM: "bring back a majority of the members, or correct spec.backend.etcd.external.endpoints",
    StoreState.AUTH_FAILED: "correct the password in the Secret that spec.backend.external.auth.secretRef names, or add "
    "the reference if there is none",
    StoreState.NO_DATABASE: "correct spec.backend.external.database, or leave it out",
    StoreState.SECRET_NOT_OFFERED: f"if it may be sent there, type kubectl label secret NAME {CREDENTIALS_LABEL}=true",
    StoreState.NOT_LOOKED_AT: "it is read again soon",
    StoreState.SECRET_MISSING: "create it in the pool's namespace, or correct spec.backend.external.auth.secretRef",
}


def external_store_answers(seen: Observed) -> Finding | None:
    if seen.probe is None or seen.probe.state is StoreState.AVAILABLE:
        return None
    state = seen.probe.state
    fix = _STORE_FIXES[state]
    if state is StoreState.UNREACHABLE:
        fix = fix.replace("host and port", _address_fields(seen))
    if state in WITHHELD:
        status = "Unknown" if state is StoreState.NOT_LOOKED_AT else "False"
        return Finding(
            state.value, f"{seen.probe.detail}; the pool's objects are left as they are until then: {fix}", status
        )
    return Finding(state.value, f"{seen.probe.detail}; engines recompute until it is back: {fix}")


def _address_fields(seen: Observed) -> str:
    """What spec.backend.external calls the address of this store."""
    backend = seen.pool.spec.backend if seen.pool else None
    external = backend.external if backend else None
    if external is not None and external.master is not None:
        return "master"
    return "sentinel.endpoints" if external is not None and external.sentinel is not None else "host and port"


def etcd_has_a_quorum(seen: Observed) -> Finding | None:
    """The members that kvpool runs; without a majority etcd answers nobody, and Mooncake's masters with it."""
    if seen.pool is None:
        return None
    for workload in stores.workloads(seen.pool):
        ready = _ready_now(seen, workload.name)
        if workload.component == etcd.COMPONENT and ready < workload.needed:
            return Finding(
                "EtcdQuorumLost",
                f"{ready} of {workload.replicas} members of etcd are ready, {workload.needed} are needed"
                f"{_because(seen, workload)}; bring members back, see the Pods of StatefulSet {workload.name}",
            )
    return None


def managed_store_is_ready(seen: Observed) -> Finding | None:
    """Whether each part of a store that kvpool runs has the Pods without which it does not work."""
    if seen.pool is None:
        return None
    for workload in stores.workloads(seen.pool):
        counted, wanted = replica_counts(seen, workload.name)
        # Of several servers some may be replaced while the rest serves; a lone one has to be the wanted one.
        ready = counted if workload.replicas == 1 else _ready_now(seen, workload.name)
        if wanted and ready >= workload.needed:
            continue
        if trouble := _troubles(seen, workload.name):
            return Finding("StorePodFailing", f"{workload.kind} {workload.name}: {trouble}")
        counts = f"{ready} of {workload.replicas} Pods ready"
        needed = f", and needs {workload.needed}" if workload.needed < workload.replicas else ""
        return Finding("StoreStarting", f"{workload.kind} {workload.name} has {counts}{needed}")
    return None


def store_lacks(seen: Observed) -> str:
    """Servers that are missing although the store works without them; empty: none."""
    workloads = stores.workloads(seen.pool) if seen.pool else ()
    return "; ".join(lack for one in workloads if (lack := _lack(seen, one)))


def _lack(seen: Observed, workload: Workload) -> str:
    """Return how many Pods one part of a store lacks, and why. It is empty if there are all of them.

    Servers of an older configuration serve as well, but a roll-out that fails must be seen.
    """
    has = f"{workload.kind} {workload.name} has"
    ready, (current, _) = _ready_now(seen, workload.name), replica_counts(seen, workload.name)
    if ready < workload.replicas:
        return f"{has} {ready} of {workload.replicas} Pods ready"
    if current < workload.replicas:
        counts = f"{current} of {workload.replicas} Pods ready with the current configuration"
        return f"{has} {counts}{_because(seen, workload)}"
    return ""


def _ready_now(seen: Observed, name: str) -> int:
    """Pods that are ready, whatever their template."""
    return int(seen.workloads.get(name, {}).get("status", {}).get("readyReplicas", 0))


def _because(seen: Observed, workload: Workload) -> str:
    trouble = _troubles(seen, workload.name)
    return f" ({trouble})" if trouble else ""


def engine_memory_fits(seen: Observed) -> Finding | None:
    if seen.pool is None:
        return None
    faults = list(_tight_engines(seen.pool))
    return Finding("EngineMemoryTooSmall", "; ".join(faults)) if faults else None


def _tight_engines(pool: Pool) -> Iterator[str]:
    for place, engine in enumerate(pool.spec.engines):
        limit = _memory_limit(engines.built_resources(pool, engine))
        sum_ = sizing.needed(pool, engine)
        if limit is not None and limit < sum_.total:
            or_less = ", or lower spec.tiers.cpu.size" if sum_.tier else ""
            yield (
                f"engine {engine.name!r} may use {format_bytes(limit)} but needs {sum_}, and weights on top if they are "
                f"in memory: raise {_limit_field(pool, engine, place)} to at least "
                f"{sizing.quantity(sum_.total)}{or_less}"
            )


def _limit_field(pool: Pool, engine: Engine, place: int) -> str:
    """Return where the limit that counts is written: the last of the places that set one."""
    inside = f"podTemplate.spec.containers[name={names.ENGINE_CONTAINER}].resources.limits.memory"
    if _memory_limit(engines.resources_in(engine.pod_template)) is not None:
        return f"spec.engines[{place}].{inside}"
    if _memory_limit(engines.resources_in(pool.settings.engine_defaults.pod_template)) is not None:
        return f"the chart's engineDefaults.{inside}, or set spec.engines[{place}].{inside},"
    return f"spec.engines[{place}].resources.limits.memory"


def _memory_limit(resources: Mapping[str, Any]) -> int | None:
    """Return the memory limit in bytes, or None if there is none that is a size."""
    limits = resources.get("limits")
    return sizing.memory_limit(limits if isinstance(limits, Mapping) else None)


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
        f"{engine.name} {replica_counts(seen, names.engine(seen.pool, engine))[0]}/{wanted(seen, seen.pool, engine)}"
        for engine in late
    )
    return Finding("EnginesStarting", f"Pods ready with the current configuration: {counts}")


def _missing(seen: Observed, pool: Pool, engine: Engine) -> bool:
    return replica_counts(seen, names.engine(pool, engine))[0] < wanted(seen, pool, engine)


def wanted(seen: Observed, pool: Pool, engine: Engine) -> int:
    """Return how many Pods an engine is to have."""
    return wanted_replicas(engine, seen.workloads.get(names.engine(pool, engine)))


def replica_counts(seen: Observed, workload: str) -> tuple[int, int]:
    """Pods that are ready with the current template, and Pods wanted.

    A workload's status may be about an older spec; then nothing of it counts, or a roll-out would
    look finished before it began. A StatefulSet whose roll-out has ended says so. One that was just
    put in the place of another says it as well, so its Pods count although they are yet to be
    replaced. While a roll-out goes on, the status does not say of which template the ready Pods are.
    So all older Pods count as ready, and what is returned is the least number of new ones that can
    be.
    """
    body = seen.workloads.get(workload, {})
    wanted = int(body.get("spec", {}).get("replicas", 0))
    status = body.get("status", {})
    if status.get("observedGeneration", -1) < body.get("metadata", {}).get("generation", 0):
        return 0, wanted
    ready, updated = int(status.get("readyReplicas", 0)), int(status.get("updatedReplicas", 0))
    if status.get("updateRevision") and status.get("currentRevision") == status["updateRevision"]:
        return min(ready, wanted), wanted  # a Pod that goes is ready for a while, and no longer counted as updated
    older = max(0, int(status.get("replicas", 0)) - updated)
    return min(max(0, ready - older), updated), wanted


def _troubles(seen: Observed, workload: str) -> str:
    return "; ".join(
        f"Pod {trouble.pod}: {trouble.reason}{': ' if trouble.message else ''}{trouble.message}"
        for trouble in seen.troubles.get(workload, ())
    )
