"""Pods of others as watch and list show them, in any order."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.observe.consumers import Consumers, record

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
