"""Ray's clusters, InferenceServices and LLMInferenceServices: the objects stay, and their Pods get the cache."""

from __future__ import annotations

import json

import pytest

from .conftest import Operator
from .injection import (
    create,
    is_injected,
    pod,
    pod_spec,
)
from .kubectl import Kubectl


@pytest.mark.usefixtures("foreign_kinds")
def test_pods_of_ray_are_resolved_by_their_cluster(pool: Kubectl) -> None:
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": {}}
    create(pool, {**cluster, "metadata": {"name": "with", "annotations": {"kvpool.dev/pool": "demo"}}})
    create(pool, {**cluster, "metadata": {"name": "without"}})
    start = {"command": ["/bin/bash", "-c", "--"], "args": ["ulimit -n 65536; ray start --head"], "name": "ray-head"}
    for name in ("with", "without", "gone"):
        create(pool, {**pod(name, pool="", labels={"ray.io/cluster": name}), "spec": pod_spec(**start)})
    body = pool.must_get("pod", "with")
    assert is_injected(body)
    assert body["spec"]["containers"][0]["args"] == start["args"]
    assert "KVPOOL_CONFIG_FILE" in {one["name"] for one in body["spec"]["containers"][0]["env"]}
    for name in ("without", "gone"):
        assert "kvpool" not in json.dumps(pool.must_get("pod", name)["spec"])
    pool.await_condition("demo", "InjectionReady", reason="Written")


@pytest.mark.usefixtures("foreign_kinds")
def test_pods_of_an_llminferenceservice_are_resolved_by_its_own_annotation(pool: Kubectl) -> None:
    service = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LLMInferenceService", "spec": {}}
    create(pool, {**service, "metadata": {"name": "with", "annotations": {"kvpool.dev/pool": "demo"}}})
    create(pool, {**service, "metadata": {"name": "without"}})
    for service_name, part, wanted in (
        ("with", "workload", True), ("with", "workload-leader-prefill", True), ("with", "router-scheduler", False),
        ("without", "workload", False), ("gone", "workload", False),
    ):  # fmt: skip
        labels = {
            "app.kubernetes.io/name": service_name,
            "app.kubernetes.io/component": f"llminferenceservice-{part}",
        }
        create(pool, pod(f"{service_name}-{part}", pool="", labels=labels))
        assert is_injected(pool.must_get("pod", f"{service_name}-{part}")) == wanted
    found = pool.await_condition("demo", "InjectionReady", reason="Written")
    assert found["message"] == "users' Pods: 2 were changed and not seen ready yet"
    assert "kvpool" not in json.dumps(pool.must_get("llminferenceservice", "with")["spec"])


@pytest.mark.usefixtures("foreign_kinds")
def test_pods_of_an_llminferenceservice_that_the_webhook_missed_are_found(pool: Kubectl, operator: Operator) -> None:
    body = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LLMInferenceService", "spec": {}}
    create(pool, {**body, "metadata": {"name": "llm", "annotations": {"kvpool.dev/pool": "demo"}}})
    labels = {"app.kubernetes.io/name": "llm", "app.kubernetes.io/component": "llminferenceservice-workload"}
    operator.stop()
    create(pool, pod("missed", pool="", labels=labels))
    operator.start()
    found = pool.await_condition("demo", "InjectionReady", reason="PodsMissed")
    assert f"{pool.namespace}/missed" in found["message"]


@pytest.mark.usefixtures("foreign_kinds")
def test_an_inferenceservice_is_not_touched_and_its_pods_are(pool: Kubectl) -> None:
    spec = {"predictor": {"model": {"modelFormat": {"name": "huggingface"}, "args": ["--model_id=org/m"]}}}
    head = {"name": "llm", "annotations": {"kvpool.dev/pool": "demo"}}
    create(
        pool, {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": head, "spec": spec}
    )
    body = pool.must_get("inferenceservice", "llm")
    assert body["spec"] == spec
    assert body["metadata"]["annotations"] == head["annotations"]
    runtime = {"name": "kserve-container", "image": "kserve/huggingfaceserver:v0.17.0", "args": ["--model_id=org/m"]}
    made = {**pod("llm-predictor"), "spec": pod_spec(**runtime, command=None)}
    create(pool, made)
    assert is_injected(pool.must_get("pod", "llm-predictor"))
