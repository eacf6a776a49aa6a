"""Upgrades and edits under Pods that run, on a real API server with Kubernetes' own controllers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from .conftest import Operator
from .kubectl import Kubectl, eventually

NEWER = {"engine": "localhost/kvpool/serving:newer", "redis": "docker.io/library/redis:newer"}
SPEC = {
    "model": {"name": "m"},
    "backend": {"type": "Redis"},
    "tiers": {"cpu": {"size": "1Gi"}},
    "engines": [{"replicas": 2}],
}
EXPANDING = "kvpool-test-expanding"
FIXED = "kvpool-test-fixed"
SMALL = "11328Mi"
LARGE = "22592Mi"


@pytest.fixture
def running(kubectl: Kubectl) -> Kubectl:
    """A pool whose Pods are all ready."""
    kubectl.apply_pool("demo", SPEC)
    eventually(lambda: len(kubectl.list("pods")) == 3, what="Pods")
    kubectl.start_pods("store")
    kubectl.start_pods("engine")
    kubectl.await_condition("demo", "Ready", reason="AllReady")
    return kubectl


@pytest.fixture
def upgraded(running: Kubectl, operator: Operator) -> Iterator[Kubectl]:
    """The same pool under the next release, which brings other images."""
    before = operator.settings.read_text()
    settings = yaml.safe_load(before)
    settings["images"] |= NEWER
    assert operator.stop() == 0
    operator.settings.write_text(yaml.safe_dump(settings))
    operator.start()
    running.await_condition("demo", "UpToDate", reason="RolloutPending")
    yield running
    assert operator.stop() == 0
    operator.settings.write_text(before)
    operator.start()


def pods(kubectl: Kubectl) -> dict[str, str]:
    """Return the uid of each Pod by its name."""
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in kubectl.list("pods")}


def image(kubectl: Kubectl, name: str) -> str:
    template = kubectl.must_get("deployment", name)["spec"]["template"]
    return str(template["spec"]["containers"][0]["image"])


def waiting(kubectl: Kubectl) -> list[dict[str, str]]:
    status = kubectl.must_get("kvcachepool", "demo")["status"]
    found: list[dict[str, str]] = status.get("rollout", {}).get("waiting", [])
    return found


def test_an_upgrade_restarts_no_pod(running: Kubectl, request: pytest.FixtureRequest) -> None:
    before = pods(running)
    request.getfixturevalue("upgraded")
    asked = {"reason": "NewImage", "until": "Asked"}
    names = ["Deployment demo-engine", "Deployment demo-store"]
    assert sorted(one["workload"] for one in waiting(running)) == names
    assert all(one.items() >= asked.items() for one in waiting(running))
    assert pods(running) == before
    assert NEWER["engine"] != image(running, "demo-engine")


def test_what_waits_comes_when_asked(upgraded: Kubectl) -> None:
    upgraded("annotate", "kvcachepool", "demo", "kvpool.dev/rollout-now=1")
    eventually(lambda: image(upgraded, "demo-engine") == NEWER["engine"], what="the engine's image")
    eventually(lambda: image(upgraded, "demo-store") == NEWER["redis"], what="the store's image")
    upgraded.await_condition("demo", "UpToDate", reason="UpToDate")
    assert waiting(upgraded) == []


def test_what_waits_comes_with_a_restart(upgraded: Kubectl) -> None:
    upgraded("rollout", "restart", "deployment", "demo-engine")
    eventually(lambda: image(upgraded, "demo-engine") == NEWER["engine"], what="the engine's image")
    assert image(upgraded, "demo-store") != NEWER["redis"]


def test_an_engine_has_the_configuration_in_its_pod(running: Kubectl) -> None:
    (pod, *_) = running.list("pods", "-l", "app.kubernetes.io/component=engine")
    text = pod["metadata"]["annotations"]["kvpool.dev/kvpool.yaml"]
    assert text == running.must_get("configmap", "demo-connector")["data"]["kvpool.yaml"]
    (volume,) = (one for one in pod["spec"]["volumes"] if one["name"] == "config")
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == "metadata.annotations['kvpool.dev/kvpool.yaml']"


def test_replicas_are_left_to_an_autoscaler(running: Kubectl, operator: Operator) -> None:
    """The pool wants two; Kubernetes' autoscaler wants three, through the subresource scale."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "demo-engine"}
    spec = {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 5}
    head = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
    running.apply({**head, "metadata": {"name": "demo"}, "spec": spec})

    def replicas() -> int:
        found: int = running.must_get("deployment", "demo-engine")["spec"]["replicas"]
        return found

    eventually(lambda: replicas() == 3, what="a third Pod")
    running("delete", "horizontalpodautoscaler", "demo")
    assert operator.stop() == 0
    operator.start()
    running.apply_pool("demo", {**SPEC, "tiers": {"cpu": {"size": "2Gi"}}})
    running.await_condition("demo", "UpToDate", reason="UpToDate")
    assert replicas() == 3
    (engine,) = running.must_get("kvcachepool", "demo")["status"]["engines"]
    assert engine["desired"] == 3
    running.apply_pool("demo", {**SPEC, "engines": [{"replicas": 1}]})
    eventually(lambda: replicas() == 1, what="the pool's own number")


@pytest.fixture(scope="module")
def classes(environment: dict[str, str]) -> Iterator[None]:
    """Two StorageClasses, of which one lets claims grow, and volumes for claims of each."""
    client = Kubectl(environment, "default")
    manifests: list[dict[str, Any]] = []
    for name in (EXPANDING, FIXED):
        head = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
        }
        expands = {"allowVolumeExpansion": name == EXPANDING}
        manifests.append(head | {"provisioner": "kvpool.dev/none"} | expands)
        for number in range(2):
            spec = {
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": name,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": "/nowhere"},
            }
            volume = {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"{name}-{number}"},
            }
            manifests.append(volume | {"spec": spec})
    text = yaml.safe_dump_all(manifests)
    client("apply", "-f", "-", text=text)
    yield
    client("delete", "-f", "-", "--wait=false", text=text)


def disk(size: str, storage_class: str) -> dict[str, Any]:
    claim = {"persistentVolumeClaim": {"storageClassName": storage_class}}
    return {
        "model": {"name": "m"},
        "tiers": {"disk": {"size": size, "volume": claim}},
        "engines": [{"replicas": 2}],
    }


def claims(kubectl: Kubectl) -> dict[str, tuple[str, str, str]]:
    """Return uid, phase and wanted size of each claim by its name."""
    items = json.loads(kubectl("get", "persistentvolumeclaims", "-o", "json"))["items"]
    return {
        item["metadata"]["name"]: (
            item["metadata"]["uid"],
            item["status"]["phase"],
            item["spec"]["resources"]["requests"]["storage"],
        )
        for item in items
    }


def uids(found: dict[str, tuple[str, str, str]]) -> dict[str, str]:
    return {name: uid for name, (uid, _, _) in found.items()}


def bound(kubectl: Kubectl, storage_class: str) -> dict[str, tuple[str, str, str]]:
    """Make a pool with two engine Pods and claims, and return the claims once they are bound."""
    kubectl.apply_pool("demo", disk("10Gi", storage_class))

    def all_bound() -> bool:
        found = claims(kubectl)
        return len(found) == 2 and all(phase == "Bound" for _, phase, _ in found.values())

    eventually(all_bound, what="claims with a volume")
    eventually(lambda: len(pods(kubectl)) == 2, what="Pods")
    kubectl.start_pods("engine")
    kubectl.await_condition("demo", "Ready", reason="AllReady")
    return claims(kubectl)


@pytest.mark.usefixtures("classes")
def test_claims_grow_and_pods_roll_one_by_one(kubectl: Kubectl) -> None:
    before = bound(kubectl, EXPANDING)
    first = pods(kubectl)["demo-engine-0"]
    uid = kubectl.must_get("statefulset", "demo-engine")["metadata"]["uid"]
    kubectl.apply_pool("demo", disk("20Gi", EXPANDING))

    def replaced() -> bool:
        found = kubectl.get("statefulset", "demo-engine")
        return found is not None and found["metadata"]["uid"] != uid

    eventually(replaced, what="another StatefulSet")
    eventually(lambda: len(pods(kubectl)) == 2, what="two Pods")
    after = claims(kubectl)
    assert uids(after) == uids(before)
    assert {claim[2] for claim in after.values()} == {LARGE}
    (template,) = kubectl.must_get("statefulset", "demo-engine")["spec"]["volumeClaimTemplates"]
    assert template["spec"]["resources"]["requests"]["storage"] == LARGE
    # The second Pod is rolled first, and nobody says of the new one that it is ready.
    assert pods(kubectl)["demo-engine-0"] == first
    kubectl.await_condition("demo", "UpToDate", reason="UpToDate")


@pytest.mark.usefixtures("classes")
def test_claims_that_cannot_grow_are_left_alone(kubectl: Kubectl) -> None:
    before = bound(kubectl, FIXED)
    running = pods(kubectl)
    spec = kubectl.must_get("statefulset", "demo-engine")["spec"]
    kubectl.apply_pool("demo", disk("20Gi", FIXED))
    told = kubectl.await_condition("demo", "UpToDate", reason="ClaimCannotGrow")
    assert "claim kvpool-disk-demo-engine-0 cannot grow" in told["message"]
    assert "allowVolumeExpansion" in told["message"]
    assert claims(kubectl) == before
    assert {claim[2] for claim in before.values()} == {SMALL}
    assert pods(kubectl) == running
    assert kubectl.must_get("statefulset", "demo-engine")["spec"] == spec
