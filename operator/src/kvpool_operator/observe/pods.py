"""Why Pods don't run, taken from their status. Pure.

All of these Pods have probes, so one that is ready runs, whatever happened to it before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kvpool_operator.status.observed import PodTrouble

_PATIENCE = {"ContainerCreating", "PodInitializing"}
"""Waiting for these is ordinary."""
_SHOWN = 3
_TEXT = 300


def troubles(pods: Iterable[Mapping[str, Any]]) -> tuple[PodTrouble, ...]:
    """At most three, the first of each Pod; Pods that are merely starting have none."""
    found = [
        PodTrouble(pod["metadata"]["name"], *trouble)
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))
        if (trouble := next(_of(pod), None)) is not None and "deletionTimestamp" not in pod["metadata"]
    ]
    return tuple(found[:_SHOWN])


def _of(pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    status = pod.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield condition.get("reason", "Unschedulable"), condition.get("message", "")[:_TEXT]
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        state = container.get("state", {})
        waiting = state.get("waiting", {})
        ended = container.get("lastState", {}).get("terminated") or state.get("terminated") or {}
        if waiting.get("reason", "ContainerCreating") not in _PATIENCE:
            yield waiting["reason"], _with_end(waiting.get("message", ""), ended)[:_TEXT]
        elif not container.get("ready") and ended.get("reason") not in (None, "Completed"):
            yield ended["reason"], f"exit code {ended.get('exitCode')}, restarts: {container.get('restartCount', 0)}"


def _with_end(message: str, ended: Mapping[str, Any]) -> str:
    """A crash loop's own message says nothing about the crash."""
    return f"{message} (last: {ended['reason']}, exit code {ended.get('exitCode')})" if ended.get("reason") else message
