"""Pods of other namespaces than the pool's: grants, copies of what they need, and workloads that came first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .conftest import POOL, Operator
from .injection import annotations_of, create, is_injected, pod
from .kubectl import Kubectl, eventually


@pytest.fixture
def other(kubectl: Kubectl) -> Iterator[Kubectl]:
    name = f"{kubectl.namespace}-other"
    client = Kubectl(kubectl.environment, name)
    client("create", "namespace", name)
    yield client
    client("delete", "namespace", name, "--wait=false")


def accept(namespace: Kubectl, pools: str) -> None:
    """Its owner says that it takes these pools; empty: none any more."""
    namespace("annotate", "namespace", namespace.namespace, f"kvpool.dev/accepts-pools={pools}", "--overwrite")


def test_a_namespace_takes_its_consent_back(kubectl: Kubectl, other: Kubectl) -> None:
    accept(other, f"x/y,{kubectl.namespace}/demo")
    kubectl.apply_pool("demo", {**POOL, "injection": {"allowedNamespaces": [other.namespace]}})
    eventually(lambda: len(other.children("demo")) == 3, what="copies")
    accept(other, "x/y")
    kubectl.apply_pool(
        "demo", {**POOL, "injection": {"allowedNamespaces": [other.namespace], "conflictPolicy": "Fail"}}
    )
    eventually(lambda: other.children("demo") == set(), what="no copies without consent")


def test_another_namespace_needs_a_grant(pool: Kubectl, other: Kubectl) -> None:
    reference = f"{pool.namespace}/demo"
    create(other, pod("one", pool=reference))
    text = annotations_of(other, "one")["kvpool.dev/skip-reason"]
    assert text.startswith("NamespaceNotAllowed: ")
    assert f"add {other.namespace} to its spec.injection.allowedNamespaces" in text

    pool.apply_pool("demo", {**POOL, "injection": {"allowedNamespaces": [other.namespace]}})
    found = pool.await_condition("demo", "InjectionReady", reason="NamespaceDoesNotAccept")
    assert f"kubectl annotate namespace {other.namespace} kvpool.dev/accepts-pools={reference}" in found["message"]
    create(other, pod("unasked", pool=reference))
    assert annotations_of(other, "unasked")["kvpool.dev/skip-reason"].startswith("NamespaceDoesNotAccept: ")
    assert other.children("demo") == set()

    accept(other, reference)
    prefix = f"{pool.namespace}.demo"
    copies = {f"ConfigMap {prefix}-connector", f"Secret {prefix}-hash-seed", f"Secret {prefix}-store-auth"}
    eventually(lambda: other.children("demo") == copies, what="copies in the other namespace")
    create(other, pod("two", pool=reference))
    assert is_injected(other.must_get("pod", "two"))
    source, copy = pool.must_get("secret", "demo-store-auth"), other.must_get("secret", f"{prefix}-store-auth")
    assert copy["data"] == {"password": source["data"]["password"]}

    pool.apply_pool("demo", POOL)
    eventually(lambda: other.children("demo") == set(), what="no copies without the grant")
    create(other, pod("three", pool=reference))
    assert annotations_of(other, "three")["kvpool.dev/skip-reason"].startswith("NamespaceNotAllowed: ")


def test_copies_go_with_the_pool_even_if_it_went_unseen(kubectl: Kubectl, other: Kubectl, operator: Operator) -> None:
    accept(other, f"{kubectl.namespace}/demo")
    kubectl.apply_pool("demo", {**POOL, "injection": {"allowedNamespaces": [other.namespace]}})
    eventually(lambda: len(other.children("demo")) == 3, what="copies")
    kubectl("delete", "secret", "demo-hash-seed")

    def same_seed() -> bool:
        source, copy = (
            kubectl.get("secret", "demo-hash-seed"),
            other.get("secret", f"{kubectl.namespace}.demo-hash-seed"),
        )
        return bool(source and copy and source["data"] == copy["data"])

    eventually(same_seed, what="the new seed copied")
    operator.stop()
    kubectl("delete", "kvcachepool", "demo")
    operator.start()
    eventually(lambda: other.children("demo") == set(), what="no copies without the pool")


def test_a_namespace_that_does_not_exist_is_said(kubectl: Kubectl) -> None:
    kubectl.apply_pool("demo", {**POOL, "injection": {"allowedNamespaces": ["nowhere"]}})
    found = kubectl.await_condition("demo", "InjectionReady", reason="NamespaceDoesNotAccept")
    assert "nowhere" in found["message"]
    assert kubectl.condition("demo", "ConfigRendered")["status"] == "True"


def test_the_secret_of_an_external_store_is_never_copied(kubectl: Kubectl, other: Kubectl) -> None:
    external = {"host": "127.0.0.1", "port": 1, "auth": {"secretRef": {"name": "mine"}}}
    kubectl("create", "secret", "generic", "mine", "--from-literal=password=x")
    kubectl("label", "secret", "mine", "kvpool.dev/store-credentials=true")
    backend = {"type": "Redis", "external": external}
    kubectl.apply_pool("demo", {"backend": backend, "injection": {"allowedNamespaces": [other.namespace]}})
    kubectl.await_condition("demo", "InjectionReady", reason="SecretNotShared")
    create(other, pod("one", pool=f"{kubectl.namespace}/demo"))
    assert annotations_of(other, "one")["kvpool.dev/skip-reason"].startswith("SecretNotShared: ")
    assert other.children("demo") == set()


def test_workloads_that_came_before_the_pool_are_told_once(kubectl: Kubectl) -> None:
    def events() -> list[tuple[str, str]]:
        found = [one for one in kubectl.list("events") if one["involvedObject"]["kind"] == "KVCachePool"]
        return [(one["reason"], one["message"]) for one in sorted(found, key=lambda one: str(one["eventTime"]))]

    for name in ("one", "two"):
        create(kubectl, pod(name))
        assert annotations_of(kubectl, name)["kvpool.dev/skip-reason"].startswith("PoolMissing: ")
    kubectl.apply_pool("demo", POOL)
    kubectl.await_condition("demo", "InjectionReady", reason="PodsSkipped")
    eventually(lambda: kubectl.must_get("kvp", "demo")["status"]["workloadsWaiting"] == 2, what="a count")
    text = "workloads that name this pool run without the cache and would get it: restart"
    told = f"2 {text} {kubectl.namespace}/Pod one, {kubectl.namespace}/Pod two"
    eventually(lambda: ("RestartNeeded", told) in events(), what="an Event")
    # Other news of the pool is none of the Event's.
    kubectl.apply_pool("demo", {**POOL, "connector": {"ttlSeconds": 60}})
    kubectl("delete", "pods", "--all", "--grace-period=0", "--force")
    eventually(lambda: "NoRestartNeeded" in dict(events()), what="the end of it")
    assert [reason for reason, _ in events()].count("RestartNeeded") == 1
    shown = kubectl("describe", "kvp", "demo")
    assert "RestartNeeded" in shown
