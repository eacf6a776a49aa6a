"""Every store, managed and external, through the operator and a real API server: the examples that users copy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvpool_connector.config import parse

from .conftest import Operator, decoded
from .kubectl import Kubectl, eventually

EXAMPLES = Path(__file__).parents[3] / "examples" / "stores"
COMMON = {"Secret hash-seed", "ConfigMap connector", "Service engine", "Deployment engine"}
LONE = {"Service store", "Deployment store", "NetworkPolicy store"}
REDIS = LONE | {"Secret store-auth", "Secret store-users", "ConfigMap store"}
MOONCAKE = {
    "ConfigMap master", "Service master", "Deployment master", "NetworkPolicy master",
    "Service members", "StatefulSet store", "NetworkPolicy store",
}  # fmt: skip
ETCD = {"Service etcd", "StatefulSet etcd", "PodDisruptionBudget etcd", "NetworkPolicy etcd"}
CHILDREN: dict[str, set[str]] = {
    "valkey": REDIS,
    "redis": REDIS,
    "sentinel": {
        "Secret store-auth", "Secret store-users", "Secret group-auth",
        "ConfigMap store", "Service members", "Service sentinel",
        "StatefulSet store", "StatefulSet sentinel", "PodDisruptionBudget store", "PodDisruptionBudget sentinel",
        "NetworkPolicy store", "NetworkPolicy sentinel",
    },
    "mooncake": MOONCAKE | {"PodDisruptionBudget store"},
    "mooncake-ha": MOONCAKE | ETCD | {"PodDisruptionBudget store", "PodDisruptionBudget master"},
    "mooncake-etcd": MOONCAKE | ETCD,
    "lmcache-server": LONE,
    "infinistore": LONE,
    "external-redis": set(),
    "external-sentinel": set(),
    "external-mooncake": set(),
    "external-lmcache-server": set(),
    "disk": set(),
}  # fmt: skip
NOT_RESTRICTED = {"infinistore"}
"""Their Pods need what Pod Security "restricted" forbids, and their documents say so."""


def short(kubectl: Kubectl, pool: str) -> set[str]:
    return {child.replace(f" {pool}-", " ") for child in kubectl.children(pool)}


def expected(pool: str) -> set[str]:
    engine = {"Deployment engine"} if pool != "disk" else {"StatefulSet engine"}
    return CHILDREN[pool] | (COMMON - {"Deployment engine"}) | engine


def apply_example(kubectl: Kubectl, name: str) -> None:
    """Apply it with the Secrets that it names, which its comments say how to make."""
    text = (EXAMPLES / f"{name}.yaml").read_text()
    for secret in sorted(set(re.findall(r"kubectl label secret (\S+) kvpool.dev/store-credentials=true", text))):
        kubectl("create", "secret", "generic", secret, "--from-literal=password=x")
        kubectl("label", "secret", secret, "kvpool.dev/store-credentials=true")
    kubectl("apply", "-f", "-", text=text)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(CHILDREN)


@pytest.mark.parametrize("name", CHILDREN)
def test_an_example_has_its_children_and_the_api_server_takes_all_of_them(
    kubectl: Kubectl, operator: Operator, name: str
) -> None:
    logged = len(operator.log)
    apply_example(kubectl, name)
    eventually(lambda: short(kubectl, name) == expected(name), what=f"the children of {name}: {expected(name)}")
    found = eventually(lambda: kubectl.condition(name, "ConfigRendered"), what="a status")
    assert found["status"] == "True", found
    text = kubectl.must_get("configmap", f"{name}-connector")["data"]["kvpool.yaml"]
    assert parse(yaml.safe_load(text), "test").pool is not None
    for kind in ("BackendAvailable", "EnginesReady"):
        assert kubectl.condition(name, kind).get("reason") != "ApplyRefused", kubectl.condition(name, kind)
    assert "Traceback" not in operator.log[logged:]


@pytest.mark.parametrize("name", sorted(set(CHILDREN) - NOT_RESTRICTED))
def test_pods_of_stores_get_past_pod_security_restricted(kubectl: Kubectl, name: str) -> None:
    """The namespace enforces it, so Pods exist only if they conform."""
    apply_example(kubectl, name)
    eventually(lambda: short(kubectl, name) == expected(name), what="children")

    def all_made() -> bool:
        wanted = sum(item["spec"]["replicas"] for item in kubectl.list("deployments,statefulsets"))
        return bool(len(kubectl.list("pods")) == wanted)

    eventually(all_made, what="all Pods of all workloads")


def test_a_group_has_a_password_of_its_own_which_engines_do_not_mount(kubectl: Kubectl, operator: Operator) -> None:
    kubectl("apply", "-f", str(EXAMPLES / "sentinel.yaml"))
    eventually(lambda: short(kubectl, "sentinel") == expected("sentinel"), what="children")
    own = decoded(kubectl.must_get("secret", "sentinel-group-auth"), "password")
    engines = decoded(kubectl.must_get("secret", "sentinel-store-auth"), "password")
    assert own != engines
    assert "kvpool-group" in decoded(kubectl.must_get("secret", "sentinel-store-users"), "users.acl")
    assert "group-auth" not in json.dumps(kubectl.must_get("deployment", "sentinel-engine"))
    shown = kubectl("get", "kvp,configmaps,services,deployments,statefulsets,pods,events", "-o", "json") + operator.log
    assert own not in shown
    assert engines not in shown


@pytest.mark.parametrize(
    ("change", "gone", "there"),
    [
        ({"mode": "Sentinel"}, {"Deployment store"}, "sentinel"),
        ({"type": "Mooncake", "mooncake": {"replicas": 2}}, {"Secret store-users", "Secret store-auth"}, "mooncake"),
        ({"type": "LMCacheServer"}, {"Secret store-auth", "ConfigMap store"}, "lmcache-server"),
    ],
)
def test_another_store_replaces_the_old_one(
    kubectl: Kubectl, change: dict[str, Any], gone: set[str], there: str
) -> None:
    kubectl("apply", "-f", str(EXAMPLES / "valkey.yaml"))
    eventually(lambda: short(kubectl, "valkey") == expected("valkey"), what="children of Valkey")
    kubectl("patch", "kvp", "valkey", "--type=merge", "-p", json.dumps({"spec": {"backend": change}}))
    eventually(lambda: short(kubectl, "valkey") == expected(there), what=f"children of {there}")
    assert not gone & short(kubectl, "valkey")


def test_a_claim_for_each_engine_is_made(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", str(EXAMPLES / "disk.yaml"))
    wanted = {"kvpool-disk-disk-engine-0", "kvpool-disk-disk-engine-1"}
    eventually(
        lambda: {item["metadata"]["name"] for item in kubectl.list("persistentvolumeclaims")} == wanted,
        what="two claims",
    )


def test_a_disk_of_another_size_deletes_no_stateful_set(kubectl: Kubectl) -> None:
    """A claim without a volume cannot grow. How others grow is seen in test_rollout.py."""
    kubectl("apply", "-f", str(EXAMPLES / "disk.yaml"))
    eventually(lambda: len(kubectl.list("persistentvolumeclaims")) == 2, what="two claims")
    before = kubectl.must_get("statefulset", "disk-engine")["metadata"]["uid"]
    larger = '{"spec":{"tiers":{"disk":{"size":"30Gi"}}}}'
    kubectl("patch", "kvp", "disk", "--type=merge", "-p", larger)
    kubectl.await_condition("disk", "UpToDate", reason="ClaimCannotGrow")
    assert kubectl.must_get("statefulset", "disk-engine")["metadata"]["uid"] == before


def external(store: dict[str, Any]) -> dict[str, Any]:
    return {"backend": {**store}, "tiers": {"cpu": {"size": "1Gi"}}}


@pytest.mark.parametrize(
    ("backend", "reason", "says"),
    [
        (
            {
                "type": "Redis",
                "external": {"sentinel": {"masterName": "m", "endpoints": [{"host": "127.0.0.1", "port": 9}]}},
            },
            "Unreachable",
            "check spec.backend.external.sentinel.endpoints",
        ),
        (
            {"type": "Mooncake", "external": {"master": "127.0.0.1:9"}},
            "Unreachable",
            "check spec.backend.external.master",
        ),
        (
            {"type": "LMCacheServer", "external": {"host": "127.0.0.1", "port": 9}},
            "Unreachable",
            "external.host and port",
        ),
        (
            {"type": "Mooncake", "external": {"master": "etcd://127.0.0.1:9;127.0.0.1:10"}},
            "EtcdQuorumLost",
            "0 of 2 members of etcd are healthy, 2 are needed",
        ),
        (
            {"type": "Mooncake", "mooncake": {"ha": True}, "etcd": {"external": {"endpoints": ["127.0.0.1:9"]}}},
            "EtcdQuorumLost",
            "correct spec.backend.etcd.external.endpoints",
        ),
    ],
    ids=["sentinels", "master", "lm", "etcd by the master", "etcd of a managed store"],
)
def test_an_external_store_that_does_not_answer(
    kubectl: Kubectl, backend: dict[str, Any], reason: str, says: str
) -> None:
    kubectl.apply_pool("pool", external(backend))
    found = kubectl.await_condition("pool", "BackendAvailable", reason=reason)
    assert says in found["message"]


def test_the_quorum_of_etcd_is_in_the_status(kubectl: Kubectl) -> None:
    """No node runs Pods here, so no member is ready."""
    spec = {"type": "Mooncake", "mooncake": {"ha": True}}
    kubectl.apply_pool("pool", external(spec))
    found = kubectl.await_condition("pool", "BackendAvailable", reason="EtcdQuorumLost")
    assert "0 of 3 members of etcd are ready, 2 are needed" in found["message"]
    assert found["status"] == "False"
