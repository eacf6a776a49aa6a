"""What the operator's account may write: the chart's ValidatingAdmissionPolicy in a real API server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helm_python import Config

from .conftest import REPOSITORY, SYSTEM
from .kubectl import Kubectl, eventually

AS_OPERATOR = ("--as", f"system:serviceaccount:{SYSTEM}:kvpool-operator")
MARK = {"app.kubernetes.io/managed-by": "kvpool-operator"}
POD = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
SELECTOR = {"selector": {"matchLabels": {"a": "b"}}}
OBJECTS: dict[str, dict[str, Any]] = {
    "Secret": {"apiVersion": "v1"},
    "ConfigMap": {"apiVersion": "v1"},
    "Service": {"apiVersion": "v1", "spec": {"ports": [{"port": 1}]}},
    "Deployment": {"apiVersion": "apps/v1", "spec": {**SELECTOR, "template": POD}},
    "StatefulSet": {"apiVersion": "apps/v1", "spec": {**SELECTOR, "template": POD, "serviceName": "s"}},
    "DaemonSet": {"apiVersion": "apps/v1", "spec": {**SELECTOR, "template": POD}},
    "NetworkPolicy": {"apiVersion": "networking.k8s.io/v1", "spec": {"podSelector": {}}},
    "PodDisruptionBudget": {"apiVersion": "policy/v1", "spec": {**SELECTOR, "maxUnavailable": 1}},
}


def manifest(kind: str, **metadata: Any) -> str:
    return json.dumps({"kind": kind, **OBJECTS[kind], "metadata": {"name": "thing", **metadata}})


def refusal(kubectl: Kubectl, *words: str, text: str | None = None) -> str:
    """Return what the policy says to the operator's account, empty where the request passes."""
    done = kubectl.run(*AS_OPERATOR, *words, text=text)
    assert done.returncode == 0 or "ValidatingAdmissionPolicy 'kvpool-operator'" in done.stderr, done.stderr
    return "" if done.returncode == 0 else done.stderr


@pytest.fixture
def confined(kubectl: Kubectl) -> Kubectl:
    """Wait until the policy is in force and return a namespace with a foreign Secret in it."""
    probe = ("create", "--dry-run=server", "-f", "-")
    eventually(lambda: refusal(kubectl, *probe, text=manifest("Secret")), what="the policy is in force")
    kubectl("create", "secret", "generic", "foreign")
    return kubectl


@pytest.mark.parametrize("kind", OBJECTS)
def test_create(confined: Kubectl, kind: str) -> None:
    create = ("create", "--dry-run=server", "-f", "-")
    apply = ("apply", "--server-side", "--dry-run=server", "-f", "-")
    for words in (create, apply):
        assert "and no others" in refusal(confined, *words, text=manifest(kind))
        assert "and no others" in refusal(confined, *words, text=manifest(kind, labels={"a": "b"}))
        assert refusal(confined, *words, text=manifest(kind, labels=MARK)) == ""


def test_update_of_a_foreign_object(confined: Kubectl) -> None:
    mark = "app.kubernetes.io/managed-by=kvpool-operator"
    assert "changes and deletes objects of its own" in refusal(confined, "label", "secret", "foreign", mark)
    assert "labels" not in confined.must_get("secret", "foreign")["metadata"]


def test_update_of_its_own(confined: Kubectl) -> None:
    assert refusal(confined, "create", "-f", "-", text=manifest("Secret", labels=MARK)) == ""
    assert refusal(confined, "label", "secret", "thing", "more=yes") == ""
    assert "and no others" in refusal(confined, "label", "secret", "thing", "app.kubernetes.io/managed-by-")
    assert "and no others" in refusal(
        confined, "label", "--overwrite", "secret", "thing", "app.kubernetes.io/managed-by=Helm"
    )


def test_delete(confined: Kubectl) -> None:
    assert "changes and deletes objects of its own" in refusal(confined, "delete", "secret", "foreign")
    confined.must_get("secret", "foreign")
    confined("create", "-f", "-", text=manifest("Secret", labels=MARK))
    assert refusal(confined, "delete", "secret", "thing") == ""
    assert confined.get("secret", "thing") is None


def test_certificate(confined: Kubectl) -> None:
    """It is changed and never deleted, and no other Secret of the operator's namespace is like it."""
    system = Kubectl(confined.environment, SYSTEM)
    patch = ("patch", "--type=merge", "--dry-run=server", "-p", '{"metadata":{"annotations":{"a":"b"}}}')
    assert refusal(system, *patch, "secret", "kvpool-operator-webhook") == ""
    deletion = ("delete", "--dry-run=server", "secret", "kvpool-operator-webhook")
    assert "changes and deletes objects of its own" in refusal(system, *deletion)
    namesake = manifest("Secret", name="kvpool-operator-webhook")
    assert "and no others" in refusal(confined, "create", "--dry-run=server", "-f", "-", text=namesake)
    other = manifest("Secret", name="kvpool-operator-webhook-2")
    assert "and no others" in refusal(system, "create", "--dry-run=server", "-f", "-", text=other)


def lease(name: str) -> str:
    return json.dumps({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}})


def test_lease(confined: Kubectl) -> None:
    """The one by which replicas elect who leads is written and never deleted, and no other one is like it."""
    system = Kubectl(confined.environment, SYSTEM)
    patch = ("patch", "--type=merge", "--dry-run=server", "-p", '{"metadata":{"annotations":{"a":"b"}}}')
    assert refusal(system, *patch, "lease", "kvpool-operator") == ""
    for other in ("kvpool-operator-2", "other"):
        made = refusal(system, "create", "--dry-run=server", "-f", "-", text=lease(other))
        assert "and no others" in made
    confined("create", "-f", "-", text=lease("kvpool-operator"))
    system("create", "-f", "-", text=lease("foreign"))
    system("delete", "lease", "foreign")


@pytest.mark.parametrize("kind", OBJECTS)
def test_another_account(confined: Kubectl, kind: str) -> None:
    confined("create", "--dry-run=server", "-f", "-", text=manifest(kind))
    confined("label", "secret", "foreign", "a=b")
    confined("delete", "secret", "foreign")


@pytest.mark.parametrize(("kind", "rendered"), [("ValidatingAdmissionPolicy", True), ("NoSuchKind", False)])
def test_helm_asks_the_server(environment: dict[str, str], tmp_path: Path, kind: str, rendered: bool) -> None:
    """An installation has the policy if the server has the kind, whatever the server's version."""
    chart = tmp_path / "kvpool-operator"
    shutil.copytree(REPOSITORY / "charts" / "kvpool-operator", chart)
    helpers = chart / "templates" / "_helpers.tpl"
    helpers.write_text(helpers.read_text().replace("/v1/ValidatingAdmissionPolicy", f"/v1/{kind}"))
    with Config(kubeconfig_path=environment["KUBECONFIG"], namespace="default") as helm:
        values = {"crds": {"enabled": False}}
        release = helm.install(chart, "dry", values, dry_run="server", namespace="default")
    assert ("kind: ValidatingAdmissionPolicyBinding" in release["manifest"]) == rendered
