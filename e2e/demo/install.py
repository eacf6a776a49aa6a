"""kvpool on the cluster of ``e2e.cluster``: images, volumes, chart, quickstart. Idempotent.

The quickstart's object is applied as it is. Only chart values differ from a user's: images from the working tree, and a
default Pod template that mounts vLLM's environment and the model from the node, as this machine may reach no registry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from helm_python import Chart

from e2e.cluster.progress import Progress
from e2e.cluster.provider import IMAGE_NAMES, Access, ImageSources, choose
from e2e.cluster.volumes import HostFolder, host_folder_manifests, pod_volumes, render
from e2e.demo import CLUSTER
from e2e.demo.stage import ENGINE_ARGUMENTS
from kvpool_operator.api.rollout import ROLLOUT_NOW
from kvpool_operator.desired.podpatch import merge
from testkit.engine import MODEL, MODEL_NAME, ROOT, ensure_model, environment
from testkit.host import Dtype, chosen_dtype
from testkit.servers import wait_until

SYSTEM = "kvpool-system"
NAMESPACE = "kvpool-demo"
RELEASE = "kvpool"
_OPERATOR = f"app.kubernetes.io/instance={RELEASE}"
QUICKSTART = ROOT / "examples/quickstart/kvcachepool.yaml"
SOURCES = ImageSources(ROOT / "operator", ROOT / "connector", ROOT / "requirements/operator.txt")
FOLDERS = (
    HostFolder("vllm-environment", ROOT / ".venvs/engine", "/venv"),
    HostFolder("models", MODEL.parent, "/models"),
)


class Kubectl:
    """The cluster's own kubectl with its kubeconfig."""

    def __init__(self, access: Access) -> None:
        self._program = str(access.kubectl)
        self._environment = os.environ | access.environment()

    def __call__(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = 60) -> str:
        """Standard output.

        Raises:
            RuntimeError: with kubectl's own words.
        """
        done = subprocess.run(
            [self._program, *arguments], input=stdin, env=self._environment, timeout=timeout_s,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments[:4])}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """Parsed JSON."""
        return json.loads(self("get", *arguments, "-o", "json"))


def install(say: Callable[[str], None], dtype: Dtype) -> Kubectl:
    """From nothing to a running operator and an applied pool; returns when the pool was accepted."""
    kubectl = run_operator(say, dtype=dtype)
    kubectl("apply", "-n", NAMESPACE, "-f", str(QUICKSTART))
    say(f"applied {QUICKSTART.relative_to(ROOT)}")
    # Engines of an earlier demo keep their number type and their connector until somebody asks.
    ask = f"{ROLLOUT_NOW}={time.time_ns()}"
    kubectl("annotate", "-n", NAMESPACE, "-f", str(QUICKSTART), "--overwrite", ask)
    return kubectl


def run_operator(
    say: Callable[[str], None],
    *,
    cluster: str = CLUSTER,
    dtype: Dtype | None = None,
    folders: Sequence[HostFolder] = FOLDERS,
    settings: Mapping[str, Any] | None = None,
) -> Kubectl:
    """From nothing to a running operator and a namespace for pools.

    Args:
        dtype: number type of engines; None: the one that this host is run in.
        folders: of this machine, mounted by every engine; a cluster whose node is elsewhere has none.
        settings: of the chart, on top of what this machine needs.
    """
    ensure_model()
    provider = choose(cluster, progress=Progress())
    access = provider.up("node")
    loaded = provider.load_images(IMAGE_NAMES, SOURCES)
    say(f"images: {', '.join(sorted(loaded.values())) or 'the published defaults'}")
    kubectl = Kubectl(access)
    _namespaces(kubectl)
    folders = folders if access.node is not None else ()
    if access.node is not None:
        manifests = [m for f in folders for m in host_folder_manifests(f, node=access.node, namespace=NAMESPACE)]
        kubectl("apply", "--server-side", "-f", "-", stdin=render(manifests))
        for folder in folders:
            kubectl(
                "wait", f"pvc/{folder.claim}", "-n", NAMESPACE, "--for=jsonpath={.status.phase}=Bound", "--timeout=30s"
            )
    values = merge(chart_values(loaded, folders, dtype or chosen_dtype()), {"settings": settings or {}})
    rendered = Chart.load(str(ROOT / "charts/kvpool-operator")).render(values=values, name=RELEASE, namespace=SYSTEM)
    # Without a namespace: each object names its own, and one of them is elsewhere.
    kubectl("apply", "--server-side", "-f", "-", stdin=_documents(rendered))
    kubectl("rollout", "status", "-n", SYSTEM, "deployment", "-l", _OPERATOR, "--timeout=120s", timeout_s=130)
    # The former one may lead until it has ended, and would take what is asked next for its own settings.
    wait_until("the former operator has ended", lambda: not _ending(kubectl), 120, poll_s=0.5)
    say("the operator runs")
    return kubectl


def _ending(kubectl: Kubectl) -> list[str]:
    """Return the operator's Pods that are on their way out."""
    pods = kubectl.get("pods", "-n", SYSTEM, "-l", _OPERATOR)["items"]
    return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" in pod["metadata"]]


def chart_values(images: Mapping[str, str], folders: Sequence[HostFolder], dtype: Dtype) -> dict[str, Any]:
    """What this machine needs beyond the chart's defaults."""
    volumes, mounts = pod_volumes(folders)
    settings: dict[str, Any] = {
        "engineDefaults": {
            "args": ["--dtype", dtype, *ENGINE_ARGUMENTS],
            # The development server's reset of the prefix cache is what the demo's steps 2 and 6 are made of.
            "env": [{"name": "VLLM_SERVER_DEV_MODE", "value": "1"}]
            + [{"name": name, "value": value} for name, value in environment().items() if name.startswith("VLLM_CPU")],
            "podTemplate": {"spec": {"volumes": volumes, "containers": [{"name": "engine", "volumeMounts": mounts}]}},
            "modelPaths": {MODEL_NAME: f"/models/{MODEL.name}"} if folders else {},
        }
    }
    values: dict[str, Any] = {"settings": settings}
    if "store" in images:
        settings["images"] = {
            "redis": images["store"],
            "valkey": images["store"],
            "engine": images["serving"],
            "payload": images["payload"],
        }
    if "operator" in images:
        repository, _, tag = images["operator"].rpartition(":")
        values["image"] = {"repository": repository, "tag": tag}
    return values


def _namespaces(kubectl: Kubectl) -> None:
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    names = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": restricted}}
        for name in (SYSTEM, NAMESPACE)
    ]
    kubectl("apply", "--server-side", "-f", "-", stdin=render(names))


def _documents(rendered: Mapping[str, str]) -> str:
    """The chart's manifests as one stream; notes are for people."""
    return "\n---\n".join(text for name, text in sorted(rendered.items()) if not name.endswith("NOTES.txt"))


def remove(cluster: str = CLUSTER) -> None:
    """End the cluster that was started here, with all that runs on it."""
    provider = choose(cluster, progress=Progress())
    if provider.name == "current":
        kubectl = Kubectl(provider.access())
        kubectl("delete", "namespace", NAMESPACE, SYSTEM, "--ignore-not-found", timeout_s=180)
        return
    provider.down(clean=True)


if __name__ == "__main__":
    remove() if Path(sys.argv[-1]).name == "down" else install(print, chosen_dtype())
