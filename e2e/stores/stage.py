"""A node with the operator, on which pools of `examples/stores` are applied as they are.

Where the store is what is looked at, engines are stand-ins: the serving image with its mounts, configuration and passwords,
in which a web server answers `/health` in place of vLLM. Two vLLMs would take both cores for a minute, for each pool. The
connector's client runs in these Pods, as it does in an engine. Requests for CPU are small, since machines that run tests are.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.progress import Progress
from e2e.cluster.provider import STORE_IMAGE_NAMES, choose, image_reference
from e2e.cluster.volumes import HostFolder, pod_volumes, render, writable_volume
from e2e.demo.install import FOLDERS, NAMESPACE, SOURCES, Kubectl, remove, run_operator
from testkit.engine import ROOT
from testkit.servers import wait_until

CLUSTER = "stores"
NODE = "local"
EXAMPLES = ROOT / "examples/stores"
START_S = 240.0
_CLIENT = ROOT / "e2e/stores/client.py"
_VENV = FOLDERS[0]
_MOONCAKE = HostFolder("mooncake-client", ROOT / ".venvs/mooncake", "/mooncake")
_HEALTH_ALONE = "touch /tmp/health && exec python3 -m http.server 8000 --directory /tmp"
_PYTHON_PATH = "/opt/kvpool:/venv/lib/python3.11/site-packages:/mooncake"

Condition = dict[str, str]


def settings(*, real_engines: bool) -> dict[str, Any]:
    """Of the chart: small requests, so that a group of stores finds room on two cores, vLLM's environment for LMCache's server,
    and stand-ins for engines unless they are real. Where engines compute, stores get ten times as much: of Pods that
    ask for 20m the kernel was seen to let more stand still (docs/compatibility.md)."""
    volumes, mounts = pod_volumes([_VENV])
    cpu = "200m" if real_engines else "20m"
    store = {"name": "store", "resources": {"requests": {"cpu": cpu}}, "volumeMounts": mounts}
    engine: dict[str, Any] = {"name": "engine"}
    spec: dict[str, Any] = {"containers": [engine]}
    if not real_engines:
        # What the operator writes as arguments becomes the shell's, which does not look at them.
        engine["command"] = ["sh", "-c", _HEALTH_ALONE, "engine"]
        engine["resources"] = {"requests": {"cpu": cpu, "memory": "128Mi"}}
        engine["lifecycle"] = {"preStop": {"sleep": {"seconds": 1}}}
        spec["terminationGracePeriodSeconds"] = 2
    return {
        "images": {name: image_reference(name) for name in STORE_IMAGE_NAMES},
        "storeDefaults": {"podTemplate": {"spec": {"volumes": volumes, "containers": [store]}}},
        "engineDefaults": {
            "env": [{"name": "PYTHONPATH", "value": _PYTHON_PATH}],
            "podTemplate": {"spec": spec},
        },
    }


class Stage:
    """The node; ended by `close`."""

    def __init__(self, say: Callable[[str], None], *, real_engines: bool = False) -> None:
        remove(CLUSTER)  # what an interrupted run left
        self.kubectl: Kubectl = run_operator(
            say,
            cluster=CLUSTER,
            folders=(*FOLDERS, _MOONCAKE),
            settings=settings(real_engines=real_engines),
        )

    def close(self) -> None:
        remove(CLUSTER)

    def images(self, *names: str) -> None:
        """Load further ones of ours."""
        choose(CLUSTER, progress=Progress()).load_images(names, SOURCES)

    def volumes(self, folder: Path, storage: str, *claims: str) -> None:
        """An empty folder of this machine for each claim that a StatefulSet will make."""
        for claim in claims:
            (folder / claim).mkdir()
        made = [
            writable_volume(HostFolder(claim, folder / claim), node=NODE, namespace=NAMESPACE, storage=storage)
            for claim in claims
        ]
        self.kubectl("apply", "-f", "-", stdin=render(made))

    def pool(self, example: str, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> Pool:
        """Apply an example; `change` may change its sizes and addresses."""
        manifest = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())
        change(manifest)
        return self.apply(manifest)

    def apply(self, manifest: dict[str, Any]) -> Pool:
        """Any pool."""
        self.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(manifest))
        return Pool(self.kubectl, manifest["metadata"]["name"])


class Pool:
    """A pool that was applied."""

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        self._kubectl, self.name = kubectl, name

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """In the pool's namespace."""
        return self._kubectl("-n", NAMESPACE, *words, stdin=stdin, timeout_s=90)

    def condition(self, kind: str) -> Condition:
        """One of the status, empty words before it is there."""
        status = self._kubectl.get("kvcachepool", self.name, "-n", NAMESPACE).get("status", {})
        unknown = {"status": "Unknown", "reason": "", "message": "not looked at yet"}
        return next((one for one in status.get("conditions", []) if one["type"] == kind), unknown)

    def wait(self, kind: str, reason: str, timeout_s: float = START_S) -> Condition:
        """Until the condition has this reason."""
        seen: Condition = {}

        def there() -> bool:
            seen.update(self.condition(kind))
            return seen["reason"] == reason

        try:
            wait_until(f"{kind} of {self.name} is {reason}", there, timeout_s, poll_s=0.2)
        except TimeoutError as error:
            pods = self.kubectl("get", "pods", "-o", "wide")
            raise TimeoutError(f"{error}; it is {seen['reason']}: {seen['message']}\n{pods}") from None
        return seen

    def ready(self, timeout_s: float = START_S) -> None:
        """Until the pool says that it serves, and that its store lacks nothing."""
        self.wait("BackendAvailable", "StoreReady", timeout_s)
        self.wait("Ready", "AllReady", timeout_s)

    def pods(self, component: str) -> dict[str, Any]:
        """Pods of a component that are not on their way out, by name."""
        selector = f"kvpool.dev/pool={self.name},app.kubernetes.io/component={component}"
        found = self._kubectl.get("pods", "-n", NAMESPACE, "-l", selector)["items"]
        return {one["metadata"]["name"]: one for one in found if "deletionTimestamp" not in one["metadata"]}

    def exists(self, pod: str) -> bool:
        """Also while it is on its way out."""
        return bool(self.kubectl("get", "pod", pod, "--ignore-not-found", "-o", "name"))

    def exec(self, pod: str, *command: str, stdin: str | None = None) -> str:
        """A program in a Pod's first container."""
        return self.kubectl("exec", "-i", pod, "--", *command, stdin=stdin)

    def client(self, verb: str, *names: str, engine: int = 0) -> list[str]:
        """The connector's client in the Pod of an engine: outcomes, one for each name.

        Args:
            engine: which Pod.
        """
        pod = sorted(self.pods("engine"))[engine]
        outcomes: list[str] = json.loads(self.exec(pod, "python3", "-", verb, *names, stdin=_CLIENT.read_text()))
        return outcomes

    def kill(self, pod: str) -> None:
        """At once, as when its node is lost."""
        self.kubectl("delete", "pod", pod, "--grace-period=0", "--force")

    def replace(self, component: str) -> None:
        """Kill the component's only Pod; returns when its successor is ready. The status may have told of it too briefly."""
        ((name, _),) = self.pods(component).items()
        self.kill(name)
        wait_until(
            f"a Pod in place of {name} is ready",
            lambda: any(is_ready(pod) for other, pod in self.pods(component).items() if other != name),
            120,
            poll_s=0.5,
        )

    def crash(self, pod: str) -> None:
        """Its container's processes end at once; the kubelet starts the container again in the same Pod."""
        status = self._kubectl.get("pod", pod, "-n", NAMESPACE)["status"]["containerStatuses"][0]
        container = status["containerID"].rpartition("/")[2]
        for place in Path("/proc").glob("[0-9]*"):
            if _in_group(place, container):
                os.kill(int(place.name), signal.SIGKILL)

    def hold(self, workload: str, replicas: int) -> None:
        """Scale it down; the pool is paused, or the operator would scale it up again."""
        self._pause(True)
        self.kubectl("scale", workload, f"--replicas={replicas}")

    def release(self) -> None:
        """The operator takes over again."""
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        patch = json.dumps({"spec": {"paused": paused}})
        self.kubectl("patch", "kvcachepool", self.name, "--type=merge", "-p", patch)

    def delete(self) -> None:
        """With all its Pods, so that the next pool has the machine for itself."""
        self.kubectl("delete", "kvcachepool", self.name, "--wait=true")
        selector = f"kvpool.dev/pool={self.name}"
        wait_until(
            f"the Pods of {self.name} are gone",
            lambda: not self._kubectl.get("pods", "-n", NAMESPACE, "-l", selector)["items"],
            90,
            poll_s=0.5,
        )


def is_ready(pod: dict[str, Any]) -> bool:
    """By its condition."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _in_group(process: Path, container: str) -> bool:
    try:
        return container in (process / "cgroup").read_text()
    except OSError:
        return False
