"""Pods that ask for a pool, and whether they got it."""

from __future__ import annotations

import json
from typing import Any

from .conftest import Operator
from .kubectl import Kubectl, eventually


def pod(name: str, *, pool: str = "demo", **metadata: Any) -> dict[str, Any]:
    head = {"name": name, "annotations": {"kvpool.dev/pool": pool} if pool else {}, **metadata}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": pod_spec()}


def pod_spec(**container: Any) -> dict[str, Any]:
    """Conforms to Pod Security "restricted", which the namespaces of these tests enforce."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    main = {
        "name": "main",
        "image": "vllm/vllm-openai:v0.32.0",
        "command": ["vllm", "serve", "m"],
        "args": ["--port", "8000"],
        "resources": {"requests": {"memory": "8Gi"}, "limits": {"memory": "8Gi"}},
        "securityContext": security,
        **container,
    }
    context = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    return {"containers": [main], "securityContext": context}


def annotations_of(kubectl: Kubectl, name: str) -> dict[str, str]:
    found: dict[str, str] = kubectl.must_get("pod", name)["metadata"].get("annotations", {})
    return found


def create(kubectl: Kubectl, manifest: dict[str, Any]) -> str:
    """Create it; returns what kubectl said beside."""
    done = kubectl.run("create", "-f", "-", text=json.dumps(manifest))
    assert done.returncode == 0, done.stderr
    return done.stderr


def is_injected(body: dict[str, Any]) -> bool:
    return "kvpool.dev/injected" in body["metadata"].get("annotations", {})


def await_trust(kubectl: Kubectl) -> None:
    """Wait until the API server itself, which hears of another CA a moment later, believes the certificate."""
    one = json.dumps(pod("asks", pool="nowhere/nothing"))
    words = ("create", "--dry-run=server", "-o", "json", "-f", "-")
    eventually(lambda: "kvpool.dev/skip-reason" in kubectl.run(*words, text=one).stdout, what="the webhook is asked")


def calls(operator: Operator) -> int:
    (line,) = [one for one in operator.metrics() if one.startswith("kvpool_operator_webhook_seconds_count")]
    return int(float(line.split()[-1]))
