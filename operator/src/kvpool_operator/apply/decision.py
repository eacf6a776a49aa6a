"""Whether one workload gets its new Pod template now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvpool_operator.api import RolloutPolicy
from kvpool_operator.api.rollout import WaitReason, WaitsUntil
from kvpool_operator.desired.names import CONFIG_HASH_ANNOTATION


@dataclass(frozen=True)
class Change:
    """A workload that would get another Pod template.

    Attributes:
        runs: it has Pods, or is about to.
        edited: an edit of the pool's spec changes the template.
        asked: somebody asked the pool for all that waits.
        restarted: somebody restarted this very workload, so its Pods are being replaced anyway.
        in_turn: no other engine lacks a Pod; always true of what is no engine.
        has_ready: at least one of its Pods is ready.
    """

    policy: RolloutPolicy
    runs: bool
    edited: bool
    asked: bool
    restarted: bool
    in_turn: bool
    has_ready: bool


def waits_until(change: Change) -> WaitsUntil | None:
    """Return what the change waits for, or None if it is rolled out now.

    1. Without Pods there is nothing to restart.
    2. Under Paused nothing is rolled out, whoever asks.
    3. Somebody has to want it: by the policy, by an edit, by asking, or by a restart.
    4. Engines roll one after the other. One without a ready Pod serves nobody, so it need not wait,
       or a fix of a broken engine could wait for ever.
    """
    if not change.runs:
        return None
    if change.policy is RolloutPolicy.PAUSED:
        return WaitsUntil.POLICY_CHANGED
    immediate = change.policy is RolloutPolicy.IMMEDIATE
    if not (immediate or change.edited or change.asked or change.restarted):
        return WaitsUntil.ASKED
    if change.has_ready and not change.restarted and not change.in_turn:
        return WaitsUntil.OTHERS_READY
    return None


def reason_of(kept: Mapping[str, Any], wanted: Mapping[str, Any], *, edited: bool) -> WaitReason:
    """Return what is different between two Pod templates, by its most telling part."""
    if edited:
        return WaitReason.SPEC_CHANGED
    if _images(kept) != _images(wanted):
        return WaitReason.NEW_IMAGE
    if _config_hash(kept) != _config_hash(wanted):
        return WaitReason.NEW_CONFIGURATION
    return WaitReason.NEW_POD_TEMPLATE


def runs(workload: Mapping[str, Any]) -> bool:
    """Return whether a workload has Pods, or is about to have some."""
    status = workload.get("status") or {}
    if workload["kind"] == "DaemonSet":
        return bool(status.get("desiredNumberScheduled") or status.get("currentNumberScheduled"))
    return bool(workload["spec"].get("replicas", 1) or status.get("replicas"))


def ready_pods(workload: Mapping[str, Any]) -> int:
    """Return how many Pods of a workload are ready, whatever their template."""
    status = workload.get("status") or {}
    ready = "numberReady" if workload["kind"] == "DaemonSet" else "readyReplicas"
    return int(status.get(ready) or 0)


def is_complete(workload: Mapping[str, Any]) -> bool:
    """Return whether all Pods of a Deployment or StatefulSet have its template and are ready.

    A status about an older template says nothing of this one.
    """
    status = workload.get("status") or {}
    if status.get("observedGeneration", -1) < workload["metadata"].get("generation", 0):
        return False
    wanted = workload["spec"].get("replicas", 1)
    updated = int(status.get("updatedReplicas") or 0)
    older = int(status.get("replicas") or 0) - updated
    return updated >= wanted and older <= 0 and ready_pods(workload) >= wanted


def _images(template: Mapping[str, Any]) -> dict[str, Any]:
    spec = template.get("spec") or {}
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    return {container["name"]: container.get("image") for container in containers}


def _config_hash(template: Mapping[str, Any]) -> Any:
    metadata = template.get("metadata") or {}
    return (metadata.get("annotations") or {}).get(CONFIG_HASH_ANNOTATION)
