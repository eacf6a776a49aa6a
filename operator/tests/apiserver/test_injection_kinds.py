"""RayServices, InferenceServices and LLMInferenceServices: what changes on the object, and what on its Pods."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from kvpool_operator.api import ConflictPolicy
from kvpool_operator.injection.rayservice import with_connector

from .conftest import POOL, Operator
from .injection import (
    SERVE_CONFIG,
    create,
    is_injected,
    pod,
    pod_spec,
)
from .kubectl import Kubectl, eventually


def ray_service(config: str) -> dict[str, Any]:
    head = {"name": "llms", "annotations": {"kvpool.dev/pool": "demo"}}
    cluster = {"headGroupSpec": {"template": {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}}}
    spec = {"serveConfigV2": config, "rayClusterConfig": cluster}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": head, "spec": spec}


@pytest.mark.usefixtures("foreign_kinds")
def test_a_rayservice_gets_the_connector_once(pool: Kubectl) -> None:
    create(pool, ray_service(SERVE_CONFIG))
    first = pool.must_get("rayservice", "llms")
    assert first["spec"]["serveConfigV2"] == with_connector(SERVE_CONFIG, ConflictPolicy.SKIP)[0]
    engines = yaml.safe_load(first["spec"]["serveConfigV2"])["applications"][0]["args"]["llm_configs"]
    assert [one["engine_kwargs"]["kv_transfer_config"]["kv_connector"] for one in engines] == ["KVPoolConnector"] * 2
    assert first["spec"]["rayClusterConfig"] == ray_service("")["spec"]["rayClusterConfig"]
    # What Git has comes again, as GitOps does it: the object stays as it is, and so does its generation.
    for _ in range(2):
        pool("replace", "-f", "-", text=json.dumps(ray_service(SERVE_CONFIG)))
        assert pool.must_get("rayservice", "llms")["spec"] == first["spec"]
    # Three edits of the pool do not reach it.
    for seconds in (60, 61, 62):
        pool.apply_pool("demo", {**POOL, "connector": {"ttlSeconds": seconds}})
    pool("annotate", "rayservice", "llms", "touched=yes")
    assert pool.must_get("rayservice", "llms")["spec"] == first["spec"]


@pytest.mark.usefixtures("foreign_kinds")
def test_a_rayservice_with_a_connector_of_its_own_by_conflict_policy(pool: Kubectl) -> None:
    own = SERVE_CONFIG.replace("4096}", "4096, kv_transfer_config: {kv_connector: LMCacheConnectorV1}}")
    for policy in (ConflictPolicy.MULTI, ConflictPolicy.REPLACE):
        pool.apply_pool("demo", {**POOL, "injection": {"conflictPolicy": str(policy)}})
        expected = with_connector(own, policy)[0]

        def is_made(policy: ConflictPolicy = policy, expected: str = expected) -> bool:
            """The operator hears of the pool's new policy a moment later."""
            pool.run("delete", "rayservice", "llms", "--ignore-not-found")
            create(pool, ray_service(own))
            return str(pool.must_get("rayservice", "llms")["spec"]["serveConfigV2"]) == expected

        eventually(is_made, what=f"a RayService by {policy}")
        pool("annotate", "rayservice", "llms", f"touched={policy}")
        assert pool.must_get("rayservice", "llms")["spec"]["serveConfigV2"] == expected
    pool.apply_pool("demo", {**POOL, "injection": {"conflictPolicy": "Fail"}})
    pool("delete", "rayservice", "llms")

    def refusal() -> str:
        pool.run("delete", "rayservice", "llms", "--ignore-not-found")
        return pool.run("create", "-f", "-", text=json.dumps(ray_service(own))).stderr

    eventually(lambda: "spec.injection.conflictPolicy is Fail" in refusal(), what="a refusal")
    assert pool.get("rayservice", "llms") is None


@pytest.mark.usefixtures("foreign_kinds")
@pytest.mark.parametrize(
    ("config", "reason"),
    [("applications: [", "NotYAML"), ("applications:\n  - import_path: a:b\n", "NoLLMConfigs"), ("", "NoLLMConfigs")],
)
def test_a_rayservice_that_can_not_be_changed(pool: Kubectl, config: str, reason: str) -> None:
    warning = create(pool, ray_service(config))
    assert f"kvpool: {reason}: " in warning
    body = pool.must_get("rayservice", "llms")
    assert body["spec"]["serveConfigV2"] == config
    assert body["metadata"]["annotations"]["kvpool.dev/skip-reason"].startswith(f"{reason}: ")


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
    assert found["message"].startswith("2 Pods")
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
