"""The provider `current`: the cluster of the current kubectl context, which somebody else runs.

`up` checks that it answers; `down` leaves it as it is.  Images are the published ones: such a cluster pulls them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.command import run
from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.provider import Access, ImageSources, Mode, Row


class CurrentProvider:
    """Uses a cluster and never changes it."""

    name = "current"

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def up(self, mode: Mode) -> Access:
        """Check that the API server answers and, for Pods, that a node is Ready."""
        access = self.access()
        run([access.kubectl, "get", "--raw", "/readyz"], timeout=30.0)
        if mode == "node" and "True" not in run([access.kubectl, "get", "nodes", "-o", _NODES_READY], timeout=30.0):
            raise ClusterError(f"the cluster of the context {self._context()} has no Ready node")
        self._progress.say(f"up: the context {self._context()} answers")
        return access

    def down(self, *, clean: bool = False) -> None:
        """Nothing: this provider started nothing."""
        self._progress.say(f"the cluster of the context {self._context()} was not started here and stays up")

    def status(self) -> list[Row]:
        """The context and the server's version."""
        return [Row(self._context(), "context", run([self.access().kubectl, "version", "-o", "json"]).strip())]

    def access(self) -> Access:
        """The user's own kubeconfig and kubectl."""
        kubectl = shutil.which("kubectl")
        if not kubectl:
            raise ClusterError("KVPOOL_CLUSTER=current needs kubectl on PATH")
        files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        return Access(Path(files), Path(kubectl))

    def build(self) -> None:
        """Nothing is built."""
        self._progress.say("nothing to build: the cluster is there")

    def load_images(self, names: Sequence[str], sources: ImageSources) -> dict[str, str]:
        """No image can be put into somebody else's cluster."""
        self._progress.say(f"the published images are used for: {', '.join(names)}")
        return {}

    def _context(self) -> str:
        return run([self.access().kubectl, "config", "current-context"]).strip()


_NODES_READY = 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
