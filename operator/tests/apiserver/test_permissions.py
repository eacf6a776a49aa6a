"""The chart's permissions are those that the operator uses: its rules beside the API server's audit log."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvpool_operator.api.settings import Probes
from kvpool_operator.kube import ENDPOINT_SLICE, connect
from kvpool_operator.observe.api_servers import NAME, NAMESPACE, ApiServers
from kvpool_operator.observe.dial import AddressRefusedError, Dialer
from testkit.patience import PATIENCE_S
from testkit.permissions import compare, rights_of, uses_of

from .conftest import SYSTEM, AuditLog, Operator
from .injection import await_trust, create, is_injected, pod
from .kubectl import Kubectl, eventually

ACCOUNT = (SYSTEM, "kvpool-operator")
CERTIFICATE = "kvpool-operator-webhook"
MULTIPROCESS = yaml.safe_load("""
model: {name: m}
connector: {type: LMCacheMP}
backend: {type: Redis}
tiers: {cpu: {size: 1Gi}}
engines: [{}]
""")
STORES: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"type": "Valkey"}, "Deployment p-store", "DaemonSet p-lmcache"),
    ({"type": "Valkey", "mode": "Sentinel"}, "StatefulSet p-sentinel", "Deployment p-store"),
    ({"type": "Mooncake", "mooncake": {"ha": True}}, "StatefulSet p-etcd", "Secret p-store-auth"),
    ({"type": "LMCacheServer"}, "Deployment p-store", "PodDisruptionBudget p-etcd"),
)
"""Each backend takes the place of the one before: what it brings, and what goes."""


def use_stores(kubectl: Kubectl) -> None:
    """Make, change and delete children of all kinds, and pause the pool."""
    kubectl.apply_pool("p", MULTIPROCESS)
    eventually(lambda: "DaemonSet p-lmcache" in kubectl.children("p"), what="the server on each node")
    for backend, made, gone in STORES:
        kubectl.apply_pool("p", {**MULTIPROCESS, "connector": {}, "backend": backend})

        def replaced(made: str = made, gone: str = gone) -> bool:
            return kubectl.children("p") & {made, gone} == {made}

        eventually(replaced, what=f"{made} is there and {gone} is not")
    kubectl.apply_pool("p", {"backend": {"type": "LMCacheServer"}, "paused": True})
    eventually(lambda: "paused" in kubectl.condition("p", "Ready").get("message", ""), what="the pool is paused")


def use_claims(kubectl: Kubectl) -> None:
    """Ask for larger claims than there are. Without a volume they cannot grow, which is heard by asking."""
    engine = {"model": {"name": "m"}, "engines": [{}]}

    def disk(size: str) -> dict[str, Any]:
        return {**engine, "tiers": {"disk": {"size": size, "volume": {"persistentVolumeClaim": {}}}}}

    kubectl.apply_pool("claims", disk("1Gi"))
    eventually(lambda: kubectl.list("persistentvolumeclaims"), what="a claim")
    kubectl.apply_pool("claims", disk("2Gi"))
    kubectl.await_condition("claims", "UpToDate", reason="ClaimCannotGrow")


def use_injection(kubectl: Kubectl) -> None:
    """Make Pods that name the pool: by themselves, by a RayCluster, by a service, and too late."""
    kubectl.apply_pool("demo", {"backend": {"type": "Redis"}, "tiers": {"cpu": {"size": "1Gi"}}})
    kubectl.await_condition("demo", "ConfigRendered", reason="Rendered")
    named = {"name": "with", "annotations": {"kvpool.dev/pool": "demo"}}
    create(kubectl, {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": named, "spec": {}})
    service = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LLMInferenceService"}
    create(kubectl, {**service, "metadata": named, "spec": {}})
    create(kubectl, pod("own"))
    create(kubectl, pod("ray", pool="", labels={"ray.io/cluster": "with"}))
    component = "llminferenceservice-workload"
    labels = {"app.kubernetes.io/name": "with", "app.kubernetes.io/component": component}
    create(kubectl, pod("llm", pool="", labels=labels))
    assert is_injected(kubectl.must_get("pod", "llm"))
    create(kubectl, pod("missed", pool=""))
    kubectl("annotate", "pod", "missed", "kvpool.dev/pool=demo")

    def told() -> bool:
        return "RestartNeeded" in {one["reason"] for one in kubectl.list("events.events.k8s.io")}

    eventually(told, what="an Event about the missed Pod")


def use_sharing(kubectl: Kubectl) -> None:
    """Share a pool with a namespace, which is asked whether it takes the pool."""
    shared = {"tiers": {"cpu": {"size": "1Gi"}}, "injection": {"allowedNamespaces": ["nowhere"]}}
    kubectl.apply_pool("shared", shared)
    kubectl.await_condition("shared", "InjectionReady", reason="NamespaceDoesNotAccept")


def use_certificate(kubectl: Kubectl) -> None:
    """Have the webhook's certificate made, changed and announced."""
    system = Kubectl(kubectl.environment, SYSTEM)

    def key() -> str:
        found = system.get("secret", CERTIFICATE) or {}
        return str(found.get("data", {}).get("tls.key", ""))

    spoilt = ("--type=merge", "-p", '{"data":{"ca.key":"bm90IGEga2V5"}}')
    for words in (("delete",), ("patch", *spoilt)):
        before = key()
        system(*words, "secret", CERTIFICATE)
        eventually(lambda before=before: key() not in ("", before), what="another certificate")  # type: ignore[misc]
    await_trust(kubectl)


def use_lease(kubectl: Kubectl) -> None:
    """Have the Lease made and renewed."""
    system = Kubectl(kubectl.environment, SYSTEM)
    system("delete", "lease", "kvpool-operator")

    def renewed() -> bool:
        spec = (system.get("lease", "kvpool-operator") or {}).get("spec", {})
        return bool(spec) and spec["renewTime"] != spec["acquireTime"]

    eventually(renewed, what="another Lease")


async def _refused_of(addresses: list[str]) -> list[str]:
    """Return those of the addresses that probes refuse, as the operator's account finds out."""
    client = connect()
    dial = Dialer(Probes(refused_networks=()), ApiServers(client, time.monotonic).hosts)
    refused = []
    for address in addresses:
        with suppress(OSError):
            try:
                async with dial.connection(address, 1, PATIENCE_S):
                    pass
            except AddressRefusedError:
                refused.append(address)
    await client.close()
    return refused


def use_probes(kubectl: Kubectl, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask whether addresses of API servers are refused.

    The API server of this cluster is on loopback, where it announces no address of its own.
    """
    nodes = ["192.0.2.1", "192.0.2.2"]
    head = {"apiVersion": ENDPOINT_SLICE.api_version, "kind": ENDPOINT_SLICE.kind, "metadata": {"name": NAME}}
    announced = {**head, "addressType": "IPv4", "endpoints": [{"addresses": [node]} for node in nodes]}
    system = Kubectl(kubectl.environment, NAMESPACE)
    system.apply({**announced, "ports": [{"name": "https", "port": 6443}]})
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    try:
        assert asyncio.run(_refused_of([*nodes, "127.9.9.9"])) == nodes
    finally:
        system("delete", "endpointslice", NAME)


@pytest.mark.usefixtures("foreign_kinds")
def test_permissions_are_those_that_are_used(
    kubectl: Kubectl,
    operator: Operator,
    audit_log: AuditLog,
    chart_manifests: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_probes(kubectl, operator.kubeconfig, monkeypatch)
    use_certificate(kubectl)
    use_lease(kubectl)
    use_injection(kubectl)
    use_sharing(kubectl)
    use_stores(kubectl)
    use_claims(kubectl)
    comparison = compare(rights_of(ACCOUNT, chart_manifests), uses_of(ACCOUNT, audit_log.lines()))
    assert comparison.missing == ()
    assert comparison.unused == ()
