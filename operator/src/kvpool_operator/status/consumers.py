"""What is said about users' Pods: ``status.consumers`` and the checks of ``InjectionReady``."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

from kvpool_operator.api import ConnectorType, InjectionMode
from kvpool_operator.api.consent import ACCEPTS
from kvpool_operator.api.injection import CONSUMERS_SHOWN
from kvpool_operator.desired import grants
from kvpool_operator.status.checks import Finding, refused
from kvpool_operator.status.observed import (
    WITHHELD,
    Consumer,
    EngineSays,
    EngineState,
    Observed,
    Seen,
)

_NAMED = 3
_REASON = 1024


class State(enum.StrEnum):
    """Of one Pod; in the order in which Pods are shown."""

    FAILING = "Failing"
    """When it was changed, and the changed container is not ready and ended with an error before."""
    DISABLED = "Disabled"
    """When it was changed, and its engine says that it could not start with the cache."""
    MISSED = "Missed"
    """When it names the pool and was never seen by the webhook."""
    SKIPPED = "Skipped"
    """When it was left as it is, for a reason, or its engine says that it leaves the cache alone."""
    OUTDATED = "Outdated"
    """When it was changed for an older configuration of the pool."""
    WRITTEN = "Written"
    """When it was changed, and the changed container was not seen ready yet, or is Ray's."""
    INJECTED = "Injected"
    """When it was changed, and the changed container is ready; nothing was heard of its engine."""
    ACTIVE = "Active"
    """When its engine says that it has the cache."""


_MISSED = "nothing was injected, since the webhook was off or did not answer when the Pod was created: restart the Pod"
_OUTDATED = "was made for an older configuration of the pool: restart the Pod when it suits"
_STATES = {
    Seen.READY: (State.INJECTED, "its container is ready; its engine has not said that it has the cache"),
    Seen.NOT_READY: (State.WRITTEN, "changed at its creation; its container was not seen ready yet"),
    Seen.RAY: (
        State.WRITTEN,
        "changed at its creation; whether an engine runs in a Pod of Ray is not seen",
    ),
}
_NO_CONNECTOR = (
    "its engine answers and knows nothing of kvpool: the connector could not be imported, or VLLM_PLUGINS leaves it out"
)
_GONE = {
    "PoolMissing": "started before the pool was there: restart the Pod",
    "PoolNotReady": "started before the pool was there: restart the Pod",
    "NoAnswer": "started while the API server did not answer: restart the Pod",
    "NamespaceNotAllowed": "started before its namespace was in spec.injection.allowedNamespaces: restart the Pod",
    "InjectionOff": "started while spec.injection.mode was Off: restart the Pod",
    "OtherConnectorType": "started while spec.connector.type was another one: restart the Pod",
}
"""Skip reasons that hold no longer, once the pool is as it is now (``_is_usable``)."""


def judge(consumer: Consumer, config_hash: str) -> tuple[State, str]:
    """Return a Pod's state, and what to do or to know."""
    if consumer.skip:
        return State.SKIPPED, _GONE.get(_word(consumer), consumer.skip)[:_REASON]
    if not consumer.mark:
        return State.MISSED, _MISSED
    if consumer.seen is Seen.CRASHED:
        return State.FAILING, f"{consumer.crash}; {_advice(consumer)}"[:_REASON]
    state, reason = _heard(consumer.says) if consumer.says is not None else _STATES[consumer.seen]
    pool, _, seen_hash = consumer.mark.partition("@")
    is_old = pool != "/".join(consumer.pool) or (config_hash and seen_hash and seen_hash != config_hash)
    if is_old and state not in (State.SKIPPED, State.DISABLED):
        state, reason = State.OUTDATED, _OUTDATED
    return state, "; ".join(text for text in (reason, consumer.warning) if text)[:_REASON]


def _heard(says: EngineSays) -> tuple[State, str]:
    """Return what an engine's own word makes of its Pod."""
    if says.state is EngineState.ACTIVE:
        return State.ACTIVE, says.reason
    if says.state is EngineState.ABSENT:
        return State.DISABLED, _NO_CONNECTOR
    state = State.SKIPPED if says.state is EngineState.SKIPPED else State.DISABLED
    return state, f"its engine runs without the cache: {says.reason}"


def _advice(consumer: Consumer) -> str:
    """Return how to find out, and how to run without kvpool, for a Pod whose container crashes."""
    where = f" from {consumer.workload}" if consumer.workload else ""
    return f"see its log, or remove the annotation kvpool.dev/pool{where} to run without the cache"


def _word(consumer: Consumer) -> str:
    """The first of a skip reason."""
    return consumer.skip.partition(":")[0]


def waiting(seen: Observed) -> tuple[str, ...]:
    """Workloads whose Pods run without the cache and would get it if they were restarted: ``<namespace>/<kind> <name>``."""
    if not _is_usable(seen):
        return ()
    return tuple(
        sorted(
            {
                f"{one.namespace}/{one.workload or one.pod}"
                for one, state, _ in _judged(seen)
                if state is State.MISSED or (state is State.SKIPPED and _word(one) in _GONE)
            }
        )
    )


def _is_usable(seen: Observed) -> bool:
    """Whether a Pod that is made now would get the cache, as far as the pool is concerned."""
    pool = seen.pool
    return (
        pool is not None
        and seen.invalid_config is None
        and not (seen.probe is not None and seen.probe.state in WITHHELD)
        and pool.spec.injection.mode is not InjectionMode.OFF
        and pool.spec.connector.type is ConnectorType.KVPOOL
    )


def facts(seen: Observed) -> dict[str, Any]:
    """Return ``status.consumers`` with counts, and the namespaces that refuse the pool.

    Consumers that need a hand come first, so that they are there in a long list.
    """
    order = list(State)
    judged = _judged(seen)
    judged.sort(key=lambda entry: (order.index(entry[1]), entry[0].namespace, entry[0].pod))
    shown = [
        {
            "namespace": consumer.namespace,
            "pod": consumer.pod,
            "workload": consumer.workload,
            "state": str(state),
            "reason": reason,
        }
        for consumer, state, reason in judged[:CONSUMERS_SHOWN]
    ]
    refusing = {"refusingNamespaces": list(seen.unconsenting)} if seen.consents_known else {}
    return {
        "consumers": shown,
        "consumerCount": len(judged),
        "workloadsWaiting": len(waiting(seen)),
        **refusing,
    }


def _judged(seen: Observed) -> list[tuple[Consumer, State, str]]:
    if seen.pool is None:
        return []
    config_hash = "" if seen.invalid_config is not None else seen.config_hash
    return [(consumer, *judge(consumer, config_hash)) for consumer in seen.consumers]


def grants_were_written(seen: Observed) -> Finding | None:
    finding = refused(seen, grants.COMPONENT)
    if finding is None:
        return None
    return Finding(
        "GrantNotWritten",
        f"Pods of a namespace in spec.injection.allowedNamespaces can't use the pool: {finding.message}",
    )


def secret_can_be_shared(seen: Observed) -> Finding | None:
    if seen.pool is None or not seen.pool.spec.injection.allowed_namespaces or grants.can_share(seen.pool):
        return None
    return Finding(
        "SecretNotShared",
        "spec.injection.allowedNamespaces has no effect, since the store's password is in a Secret of yours, which is never "
        "copied: make a pool in each of these namespaces, with the same spec.backend.external and the Secret",
    )


NOT_ACCEPTED = "NamespaceDoesNotAccept"


def namespaces_take_the_pool(seen: Observed) -> Finding | None:
    """Whether each namespace that the pool is to be shared with says so itself."""
    if seen.pool is None or not seen.unconsenting or not seen.consents_known:
        return None
    pool = f"{seen.pool.namespace}/{seen.pool.name}"
    command = f"kubectl annotate namespace {seen.unconsenting[0]} {ACCEPTS}={pool}"
    return Finding(
        NOT_ACCEPTED,
        f"namespaces in spec.injection.allowedNamespaces that do not take this pool: {', '.join(seen.unconsenting)}. "
        f"Nothing is written there until their owner types {command} (several pools: separated by commas)",
    )


def pods_use_the_pool(seen: Observed) -> Finding | None:
    """Pods that do not even serve come first. Of the others, those come first of which nobody told
    their owner anything."""
    faults = (
        (State.FAILING, "PodsFailing"),
        (State.DISABLED, "PodsDisabled"),
        (State.MISSED, "PodsMissed"),
        (State.SKIPPED, "PodsSkipped"),
    )
    findings = (_pods_that_are(seen, state, reason, "False") for state, reason in faults)
    return next((finding for finding in findings if finding is not None), None)


def pods_are_up_to_date(seen: Observed) -> Finding | None:
    """Pods that use an older configuration are no fault. So this is the last check of its chain."""
    return _pods_that_are(seen, State.OUTDATED, "PodsOutdated", "True")


def _pods_that_are(seen: Observed, state: State, reason: str, status: str) -> Finding | None:
    """Return a finding that names the Pods in this state. It is None if there are none."""
    if seen.pool is None or seen.pool.spec.injection.mode is InjectionMode.OFF:
        return None
    judged = _judged(seen)
    those = [(consumer, text) for consumer, found, text in judged if found is state]
    if not those:
        return None
    return Finding(reason, f"{len(those)} of {len(judged)} Pods: {_listed(those)}", status)


def _listed(those: Iterable[tuple[Consumer, str]]) -> str:
    entries = sorted(f"{consumer.namespace}/{consumer.pod}: {text}" for consumer, text in those)
    rest = f"; and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
    return "; ".join(entries[:_NAMED]) + rest


def all_is_well(seen: Observed) -> tuple[str, str]:
    if seen.pool is not None and seen.pool.spec.injection.mode is InjectionMode.OFF:
        return "InjectionOff", "spec.injection.mode is Off: users' Pods don't get the cache"
    if not seen.consumers:
        return "NoConsumers", "no user's Pod names the pool in the annotation kvpool.dev/pool"
    states = [state for _, state, _ in _judged(seen)]
    active = states.count(State.ACTIVE)
    if active == len(states):
        return "Active", f"{active} users' Pods use the pool, as their engines say"
    unsure = {
        "are ready with it, and their engines were not heard": states.count(State.INJECTED),
        "were changed and not seen ready yet": states.count(State.WRITTEN),
    }
    parts = [f"{count} {what}" for what, count in unsure.items() if count]
    told = f"{active} users' Pods use the pool, as their engines say; others: " if active else "users' Pods: "
    return ("Written" if states.count(State.WRITTEN) else "Injected"), told + ", ".join(parts)
