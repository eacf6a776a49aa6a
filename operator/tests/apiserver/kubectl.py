"""kubectl, as users have it, and waiting without sleeping blindly."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from testkit.patience import PATIENCE_S

from .reader import Reader, reader

T = TypeVar("T")
SEEDS = Path(__file__).parents[3] / "examples" / "seeds"
FOREIGN_CRDS = Path(__file__).with_name("foreign_crds.yaml")
"""Of KServe and KubeRay, as far as the API server must know them."""
CHILD_KINDS = "secrets,configmaps,services,deployments,daemonsets,statefulsets,poddisruptionbudgets,networkpolicies"


def eventually(look: Callable[[], T], *, seconds: float = PATIENCE_S, what: str) -> T:
    """The first truthy result; the test fails after the deadline, with the last one."""
    deadline = time.monotonic() + seconds
    while True:
        result = look()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}; last seen: {result!r}")
        time.sleep(0.05)


class Kubectl:
    """kubectl with one cluster and one namespace."""

    def __init__(self, environment: Mapping[str, str], namespace: str) -> None:
        self.environment = dict(environment)
        self.namespace = namespace

    def run(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", "--namespace", self.namespace, *arguments],
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )

    def __call__(self, *arguments: str, text: str | None = None) -> str:
        """The output of a command that has to succeed."""
        done = self.run(*arguments, text=text)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, manifest: Mapping[str, Any]) -> None:
        self("apply", "-f", "-", text=json.dumps(manifest))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return self._reader.get(self.namespace, kind, name)

    def must_get(self, kind: str, name: str) -> dict[str, Any]:
        found = self.get(kind, name)
        assert found is not None, f"{kind} {name} does not exist"
        return found

    def list(self, kinds: str, *selector: str) -> list[dict[str, Any]]:
        """The objects of some kinds.

        Args:
            selector: none, or ``-l`` and a label selector.
        """
        option, labels = selector or ("-l", "")
        assert option == "-l", selector
        return self._reader.list(self.namespace, kinds, labels)

    @property
    def _reader(self) -> Reader:
        return reader(self.environment["KUBECONFIG"])

    def children(self, pool: str) -> set[str]:
        items = self.list(CHILD_KINDS, "-l", f"kvpool.dev/pool={pool}")
        return {f"{item['kind']} {item['metadata']['name']}" for item in items}

    def apply_pool(self, name: str, spec: str | Mapping[str, Any]) -> None:
        parsed = yaml.safe_load(spec) if isinstance(spec, str) else spec
        head = {"apiVersion": "kvpool.dev/v1alpha1", "kind": "KVCachePool", "metadata": {"name": name}}
        self.apply({**head, "spec": parsed})

    def condition(self, pool: str, kind: str) -> dict[str, Any]:
        """A condition of a pool; empty before the operator has spoken about the present spec."""
        body = self.get("kvcachepool", pool) or {}
        status = body.get("status", {})
        if status.get("observedGeneration") != body.get("metadata", {}).get("generation"):
            return {}
        found: dict[str, Any] = next((c for c in status.get("conditions", ()) if c["type"] == kind), {})
        return found

    def await_condition(self, pool: str, kind: str, *, reason: str) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            found = self.condition(pool, kind)
            return found if found.get("reason") == reason else {}

        try:
            return eventually(look, what=f"{kind} of {pool} with reason {reason}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.condition(pool, kind)}") from None

    def start_pods(self, component: str) -> None:
        """Write into every Pod of a component what a kubelet would: it runs and is ready.

        The scheduler has spoken first, and its condition stays: it would write it again otherwise, at a time
        of its own, and a test that counts what is written would count that.
        """
        selector = f"app.kubernetes.io/component={component}"

        def judged() -> list[dict[str, Any]]:
            pods = self.list("pods", "-l", selector)
            types = [{c["type"] for c in pod["status"].get("conditions", ())} for pod in pods]
            return pods if all("PodScheduled" in found for found in types) else []

        for pod in eventually(judged, what=f"the scheduler's word on the Pods of {component}"):
            ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}
            patch = json.dumps({"status": {"phase": "Running", "conditions": [ready]}})
            self("patch", "pod", pod["metadata"]["name"], "--subresource=status", "--type=strategic", "-p", patch)

    def versions(self) -> dict[str, str]:
        """The version of every object of the namespace that the operator or a controller could have changed."""
        kinds = f"kvcachepools,{CHILD_KINDS},replicasets,pods,endpointslices"
        return {
            f"{item['kind']} {item['metadata']['name']}": item["metadata"]["resourceVersion"]
            for item in self.list(kinds)
        }
