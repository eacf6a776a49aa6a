"""Why a Pod does not run, from the statuses that kubelet and scheduler write."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.observe.pods import troubles


def pod(status: dict[str, Any], name: str = "p", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}, "status": status}


def waiting(reason: str, message: str = "", **further: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}, **further}]}


OOM = {"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}, "restartCount": 2}
UNSCHEDULABLE = {
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no memory"}
    ]
}


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (UNSCHEDULABLE, "Unschedulable", "no memory"),
        (waiting("ImagePullBackOff", "no such image"), "ImagePullBackOff", "no such image"),
        (waiting("CreateContainerConfigError", 'secret "x" not found'), "CreateContainerConfigError", "not found"),
        (waiting("CrashLoopBackOff", "back-off", **OOM), "CrashLoopBackOff", "last: OOMKilled, exit code 137"),
        ({"containerStatuses": [{"state": {"running": {}}, **OOM}]}, "OOMKilled", "restarts: 2"),
        ({"initContainerStatuses": waiting("ErrImagePull")["containerStatuses"]}, "ErrImagePull", ""),
    ],
)
def test_a_fault_in_the_words_of_kubernetes(status: dict[str, Any], reason: str, message: str) -> None:
    (found,) = troubles([pod(status)])
    assert found.reason == reason
    assert message in found.message


@pytest.mark.parametrize(
    "status",
    [
        {},
        waiting("ContainerCreating"),
        {"containerStatuses": [{"state": {"running": {}}}]},
        {"conditions": [{"type": "PodScheduled", "status": "True"}]},
        {"containerStatuses": [{"state": {"running": {}}, "ready": True, **OOM}]},
    ],
)
def test_a_pod_that_starts_or_runs_again_has_none(status: dict[str, Any]) -> None:
    assert troubles([pod(status)]) == ()


def test_a_pod_that_goes_has_none_and_at_most_three_are_told() -> None:
    assert troubles([pod(UNSCHEDULABLE, deletionTimestamp="t")]) == ()
    assert [t.pod for t in troubles([pod(UNSCHEDULABLE, f"p{n}") for n in (4, 3, 2, 1)])] == ["p1", "p2", "p3"]
