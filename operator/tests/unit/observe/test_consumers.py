"""Pods of others as watch and list show them, in any order."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.observe.consumers import Consumers, record
from kvpool_operator.status.observed import Seen

KEY = ("team", "demo")


def pod(name: str = "a", version: int = 1, **annotations: str) -> dict[str, Any]:
    given = {f"kvpool.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    metadata = {"name": name, "namespace": "team", "resourceVersion": str(version), "annotations": given}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def test_news_is_what_says_something_new() -> None:
    consumers = Consumers()
    assert consumers.put(pod(pool="demo")) == {KEY}
    assert consumers.put(pod(version=2, pool="demo")) == set()
    assert consumers.put(pod(version=3, pool="demo", injected="team/demo@h")) == {KEY}
    assert consumers.put(pod(version=1, pool="demo")) == set(), "an older state is no news"
    (one,) = consumers.of(KEY)
    assert one.mark == "team/demo@h"
    assert consumers.put(pod(version=4, pool="other/x")) == {KEY, ("other", "x")}
    assert consumers.drop(pod()) == {("other", "x")}
    assert consumers.of(KEY) == ()


def test_a_pod_whose_annotation_can_mean_no_pool_is_none() -> None:
    assert record(pod(pool="x/../../../../api/v1/secrets")) is None
    assert record(pod(), "team/..") is None


def test_a_pod_that_goes_is_none() -> None:
    body = pod(pool="demo")
    body["metadata"]["deletionTimestamp"] = "t"
    assert record(body) is None
    assert record(pod()) is None
    assert record(pod(), "demo") is not None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "Pod a"),
        ({"ownerReferences": [{"kind": "StatefulSet", "name": "web", "controller": True}]}, "StatefulSet web"),
        ({"ownerReferences": [{"kind": "Thing", "name": "x"}]}, "Pod a"),
        (
            {
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-7d4", "controller": True}],
                "labels": {"pod-template-hash": "7d4"},
            },
            "Deployment web",
        ),
        ({"ownerReferences": [{"kind": "ReplicaSet", "name": "web-7d4", "controller": True}]}, "ReplicaSet web-7d4"),
        (
            {
                "ownerReferences": [{"kind": "ReplicaSet", "name": "llm-predictor-7d4", "controller": True}],
                "labels": {"pod-template-hash": "7d4", "serving.kserve.io/inferenceservice": "llm"},
            },
            "InferenceService llm",
        ),
        (
            {
                "labels": {
                    "app.kubernetes.io/component": "llminferenceservice-workload",
                    "app.kubernetes.io/name": "llm",
                }
            },
            "LLMInferenceService llm",
        ),
        ({"labels": {"ray.io/cluster": "llms-x"}}, "RayCluster llms-x"),
    ],
)
def test_a_pod_tells_what_a_person_restarts(metadata: dict[str, Any], expected: str) -> None:
    body = pod(pool="demo")
    body["metadata"] |= metadata
    found = record(body)
    assert found is not None
    assert found.workload == expected


READY = {"name": "main", "ready": True, "state": {"running": {}}}
STARTING = {"name": "main", "ready": False, "state": {"running": {}}}
ENDED = {"terminated": {"reason": "Error", "exitCode": 1}}
CRASH = "container main ended: Error, exit code 1"


def running(*statuses: dict[str, Any], probe: bool = True, version: int = 1, **further: Any) -> dict[str, Any]:
    """A Pod that was changed: its container is called main, and another one beside it is not ours."""
    body = pod(pool="demo", injected="team/demo@h", version=version)
    main: dict[str, Any] = {"name": "main", "volumeMounts": [{"name": "kvpool-config", "mountPath": "/etc/kvpool"}]}
    if probe:
        main["readinessProbe"] = {"httpGet": {"path": "/health", "port": 8000}}
    body["spec"] = {"containers": [main, {"name": "proxy"}]}
    body["status"] = {"containerStatuses": list(statuses), **further}
    return body


LOOP = {"name": "main", "ready": False, "lastState": ENDED, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}


@pytest.mark.parametrize(
    ("body", "seen", "crash"),
    [
        (pod(pool="demo"), Seen.NOT_READY, ""),
        (running(), Seen.NOT_READY, ""),
        (running(STARTING), Seen.NOT_READY, ""),
        (running(READY), Seen.READY, ""),
        (running(READY, probe=False), Seen.READY, ""),
        (running(LOOP), Seen.CRASHED, CRASH),
        (running({**STARTING, "lastState": ENDED}), Seen.CRASHED, CRASH),
        (running({**STARTING, "state": ENDED}), Seen.CRASHED, CRASH),
        (running({**READY, "lastState": ENDED}), Seen.READY, ""),
        (running({**READY, "lastState": ENDED}, probe=False), Seen.CRASHED, CRASH),
        (running({**LOOP, "lastState": {}}), Seen.CRASHED, "container main waits: CrashLoopBackOff"),
        (running({**STARTING, "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}), Seen.NOT_READY, ""),
        (running(READY, {**LOOP, "name": "proxy"}), Seen.READY, ""),
        (running({**READY, "name": "proxy"}), Seen.NOT_READY, ""),
        (
            running(initContainerStatuses=[{**LOOP, "name": "kvpool-payload"}]),
            Seen.CRASHED,
            "container kvpool-payload ended: Error, exit code 1",
        ),
        (running(initContainerStatuses=[{**LOOP, "name": "theirs"}]), Seen.NOT_READY, ""),
    ],
)
def test_what_a_changed_container_was_seen_to_do(body: dict[str, Any], seen: Seen, crash: str) -> None:
    found = record(body)
    assert found is not None
    assert (found.seen, found.crash) == (seen, crash)


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_a_pod_of_ray_that_is_ready_shows_no_engine(kind: str) -> None:
    body = running(READY)
    body["metadata"]["labels"] = {"ray.io/cluster": "llms", "ray.io/node-type": kind}
    found = record(body)
    assert found is not None
    assert found.seen is Seen.RAY


def test_a_container_that_becomes_ready_or_crashes_is_news_once() -> None:
    consumers = Consumers()
    shown = [STARTING, READY, READY, STARTING, LOOP, {**STARTING, "lastState": ENDED}, LOOP, READY]
    news = [bool(consumers.put(running(one, version=number))) for number, one in enumerate(shown)]
    assert news == [True, True, False, True, True, False, False, True]


def metadata_of(body: dict[str, Any]) -> dict[str, Any]:
    """As a list of metadata alone shows a Pod."""
    return {key: value for key, value in body.items() if key not in ("spec", "status")}


def test_a_list_of_metadata_does_not_hide_what_the_watch_showed() -> None:
    consumers = Consumers()
    consumers.put(running(READY))
    consumers.begin_list()
    assert consumers.replace(listed(metadata_of(running(READY, version=2)))) == set()
    assert consumers.of(KEY)[0].seen is Seen.READY
    assert consumers.put(running(LOOP, version=2)) == {KEY}, "the list was first to show this version"
    assert consumers.of(KEY)[0].seen is Seen.CRASHED


def listed(*bodies: dict[str, Any]) -> list[Any]:
    return [one for body in bodies if (one := record(body)) is not None]


def test_a_list_finds_and_forgets() -> None:
    consumers = Consumers()
    consumers.put(pod("seen", pool="demo"))
    consumers.begin_list()
    assert consumers.replace(listed(pod("missed", pool="demo"))) == {KEY}
    assert [one.pod for one in consumers.of(KEY)] == ["missed"]
    consumers.begin_list()
    assert consumers.replace(listed(pod("missed", pool="demo"))) == set()


def test_what_the_watch_showed_meanwhile_is_newer_than_the_list() -> None:
    consumers = Consumers()
    consumers.put(pod("gone", pool="demo"))
    consumers.begin_list()
    consumers.put(pod("new", pool="demo"))
    consumers.drop(pod("gone"))
    consumers.replace(listed(pod("gone", pool="demo")))
    assert [one.pod for one in consumers.of(KEY)] == ["new"]
