"""What is said of Pods that are not the ones that are wanted."""

from __future__ import annotations

from typing import Any

from kvpool_operator.api.rollout import MOST_WAITING, ROLLOUT_NOW, WaitReason, WaitsUntil
from kvpool_operator.status.checks import Finding
from kvpool_operator.status.observed import Observed, Waiting

_REASONS = {
    WaitReason.SPEC_CHANGED: "an edited spec",
    WaitReason.NEW_IMAGE: "another image",
    WaitReason.NEW_CONFIGURATION: "another configuration",
    WaitReason.NEW_POD_TEMPLATE: "another Pod template",
    WaitReason.NEW_KIND: "a workload of another kind in its place",
}
_UNTIL = {
    WaitsUntil.ASKED: "until somebody asks for it",
    WaitsUntil.POLICY_CHANGED: "until spec.rollout.policy is no longer Paused",
    WaitsUntil.OTHERS_READY: "until all Pods of the other engines are ready",
    WaitsUntil.CLAIMS_GROWN: "until the claims of its Pods are as wanted",
    WaitsUntil.CLAIMS_POSSIBLE: "until the spec asks for claims that can be had",
    WaitsUntil.REPLACEMENT_READY: "until the one in its place is ready",
}


def was_planned(seen: Observed) -> Finding | None:
    """Say nothing of what waits where nothing was planned, such as in a paused pool."""
    if seen.waiting is not None:
        return None
    message = "not looked at while the pool's objects are left as they are"
    return Finding("NotPlanned", message, "Unknown")


def claims_are_possible(seen: Observed) -> Finding | None:
    """Claims that the spec asks for and that cannot be had explain why a workload waits."""
    if not seen.claim_faults:
        return None
    message = "; ".join(fault.message for fault in seen.claim_faults)
    return Finding(seen.claim_faults[0].reason, message)


def nothing_waits(seen: Observed) -> Finding | None:
    """Name the workloads that wait, and how to ask for what they wait for."""
    if not seen.waiting:
        return None
    return Finding("RolloutPending", f"{told(seen.waiting)}{_fix(seen)}")


def told(waiting: tuple[Waiting, ...]) -> str:
    """Return what waits, and until when."""
    sentences = (f"{one.workload} waits for {_REASONS[one.reason]} {_UNTIL[one.until]}" for one in waiting)
    return "; ".join(sentences)


def facts(seen: Observed) -> dict[str, Any]:
    """Return ``status.rollout``; nothing where nothing waits."""
    if not seen.waiting:
        return {}
    return {"rollout": {"waiting": [_entry(one) for one in seen.waiting[:MOST_WAITING]]}}


def _entry(waiting: Waiting) -> dict[str, str]:
    reason = waiting.reason.value
    return {"workload": waiting.workload, "reason": reason, "until": waiting.until.value}


def _fix(seen: Observed) -> str:
    assert seen.pool is not None  # noqa: S101  (what waits belongs to a pool)
    if not any(one.until is WaitsUntil.ASKED for one in seen.waiting or ()):
        return ""
    return (
        f". To ask for all of it: kubectl annotate kvcachepool {seen.pool.name} --overwrite "
        f"{ROLLOUT_NOW}=$(date +%s); for one workload: kubectl rollout restart"
    )
