"""An engine that knows nothing of kvpool has hits after one annotation, in a restricted namespace.

The Pod is a user's: vLLM started by a shell script, without prefix caching, from an image whose vLLM
has no connector. The serving image of this cluster stands in for a stock one: the Pod's own
`PYTHONPATH` leaves kvpool's folder of it out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.provider import image_reference
from e2e.cluster.volumes import pod_volumes
from e2e.demo import install
from e2e.demo.stage import ENGINE_ARGUMENTS
from e2e.demo.steps import prompts
from testkit.engine import MODEL, MODEL_NAME, environment
from testkit.http_client import ask
from testkit.servers import wait_until

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
]
POOL = "shared"
POD = "web"
START_S = 600
_WRITABLE = {"tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108  (in the container)
"""vLLM's processes on a CPU talk over 160 MiB of shared memory, with and without kvpool."""
_PACKAGES = "/venv/lib/python3.11/site-packages"


@pytest.fixture(scope="module")
def kubectl() -> Iterator[install.Kubectl]:
    """The operator runs, and a pool without engines of its own has its store."""
    kubectl = install.run_operator(print)
    spec = {
        "backend": {"type": "Redis", "memory": "512Mi"},
        "tiers": {"cpu": {"size": "1Gi"}},
        "injection": {"delivery": "InitContainer"},  # the image is the one that engines of kvpool's have
    }
    pool = {"apiVersion": "kvpool.dev/v1alpha1", "kind": "KVCachePool", "metadata": {"name": POOL}, "spec": spec}
    kubectl("apply", "-n", install.NAMESPACE, "-f", "-", stdin=json.dumps(pool))
    kubectl(
        "wait", f"kvcachepool/{POOL}", "-n", install.NAMESPACE, "--for=condition=BackendAvailable", "--timeout=180s",
        timeout_s=200,
    )  # fmt: skip
    yield kubectl
    print(kubectl("logs", POD, "-n", install.NAMESPACE, "--tail=60", check=False))
    install.remove()


def pod(image: str) -> dict[str, Any]:
    """A user's Pod. Only its first annotation is for kvpool."""
    serve = [
        "python3", "-m", "vllm.entrypoints.openai.api_server", "--model", f"/models/{MODEL.name}",
        "--served-model-name", MODEL_NAME, "--dtype", "float32", "--no-enable-prefix-caching", *ENGINE_ARGUMENTS,
    ]  # fmt: skip
    volumes, mounts = pod_volumes(install.FOLDERS)
    own = {"PYTHONPATH": _PACKAGES, **{k: v for k, v in environment().items() if k != "PYTHONHASHSEED"}}
    container = {
        "name": "vllm",
        "image": image,
        "command": ["sh", "-c", f"echo starting; exec {' '.join(serve)}"],
        "env": [{"name": name, "value": value} for name, value in own.items()],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 2},
        "volumeMounts": [*mounts, *({"name": name, "mountPath": path} for name, path in _WRITABLE.items())],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "containers": [container],
        "volumes": [*volumes, *({"name": name, "emptyDir": {"medium": "Memory"}} for name in _WRITABLE)],
        "securityContext": security,
        "automountServiceAccountToken": False,
    }
    metadata = {"name": POD, "annotations": {"kvpool.dev/pool": POOL}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_one_annotation_gives_hits(kubectl: install.Kubectl) -> None:
    where = ("-n", install.NAMESPACE)
    manifest = pod(image_reference("serving"))
    kubectl("create", *where, "-f", "-", stdin=json.dumps(manifest))
    live = kubectl.get("pod", POD, *where)
    (container,) = live["spec"]["containers"]
    assert container["command"] == manifest["spec"]["containers"][0]["command"]
    assert "args" not in container
    kubectl("wait", f"pod/{POD}", *where, "--for=condition=Ready", f"--timeout={START_S}s", timeout_s=START_S + 10)

    url = f"http://{kubectl.get('pod', POD, *where)['status']['podIP']}:8000"
    prompt = prompts("float32", short=True)[0]
    cold, warm = (ask(url, MODEL_NAME, prompt) for _ in range(2))
    assert cold.cached_tokens == 0
    assert warm.cached_tokens > 0.75 * warm.prompt_tokens
    assert warm.text == cold.text

    def state() -> str:
        rows = kubectl.get("kvcachepool", POOL, *where)["status"].get("consumers", [])
        return ", ".join(f"{row['state']}: {row['reason']}" for row in rows)

    wait_until("the engine was heard", lambda: state().startswith("Active: "), 60, poll_s=1)
