"""The provider `kind`: a cluster in Docker containers, for machines with Docker, kind, kubectl and an image registry.

NOT RUN YET: where this was written no image registry could be reached, so no node image could be had.  The
commands that it issues are tested with stand-ins for kind and docker; the first run on a real machine is to come.

Images are built by Docker from `images/` and loaded into the cluster's node; the store is the published one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.command import run, succeeds
from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.provider import Access, ImageSources, Mode, Row, image_reference
from e2e.cluster.settings import REPOSITORY, Settings

# The serving image's base here: kind nodes have no GPU.
CPU_BASE = "vllm/vllm-openai-cpu:v0.32.0"
DOCKERFILES = {name: f"Dockerfile.{name}" for name in ("operator", "serving", "payload")}


class KindProvider:
    """A kind cluster named `kvpool-<name>`."""

    name = "kind"

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._cluster = f"kvpool-{settings.name}"
        self._kubeconfig = settings.root / "kind.kubeconfig"
        self._progress = progress

    def up(self, mode: Mode) -> Access:
        """Create the cluster unless it is there.  kind always has a node, so both modes are the same."""
        access = self._access()
        if self._exists():
            # A cluster that Docker has stopped (a reboot) still has its name; its containers come back by themselves.
            run(["kind", "export", "kubeconfig", "--name", self._cluster, "--kubeconfig", self._kubeconfig])
        else:
            self._kubeconfig.parent.mkdir(parents=True, exist_ok=True)
            with self._progress.during(f"creating the kind cluster {self._cluster} (kind pulls its node image)"):
                run(
                    [
                        "kind",
                        "create",
                        "cluster",
                        "--name",
                        self._cluster,
                        "--kubeconfig",
                        self._kubeconfig,
                        "--wait",
                        "180s",
                    ]
                )
        kubectl = [str(access.kubectl), f"--kubeconfig={self._kubeconfig}"]
        run([*kubectl, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s"])
        self._progress.say(f"up: kind cluster {self._cluster}")
        return access

    def down(self, *, clean: bool = False) -> None:
        """Delete the cluster; kind keeps no state, so `clean` adds only the kubeconfig."""
        if self._exists():
            run(["kind", "delete", "cluster", "--name", self._cluster, "--kubeconfig", self._kubeconfig])
        if clean:
            self._kubeconfig.unlink(missing_ok=True)
        self._progress.say(f"down: kind cluster {self._cluster}")

    def status(self) -> list[Row]:
        """Whether the cluster exists."""
        return [Row(self._cluster, "exists" if self._exists() else "not started", str(self._kubeconfig))]

    def access(self) -> Access:
        """How to reach the cluster."""
        if not self._kubeconfig.exists():
            raise ClusterError(f"there is no kind cluster {self._cluster}: run `up` first")
        return self._access()

    def build(self) -> None:
        """Nothing is built before the cluster is there."""
        self._progress.say("nothing to build: kind pulls its node image by itself")

    def load_images(self, names: Sequence[str], sources: ImageSources) -> dict[str, str]:
        """Build our images with Docker from the working tree and load them into the node."""
        loaded: dict[str, str] = {}
        for name in names:
            if name not in DOCKERFILES:  # the store: its published image is pulled
                continue
            reference = image_reference(name)
            with self._progress.during(f"building {reference} with Docker"):
                run(build_command(name, reference))
            run(["kind", "load", "docker-image", reference, "--name", self._cluster])
            loaded[name] = reference
        return loaded

    def _exists(self) -> bool:
        return self._cluster in run(["kind", "get", "clusters"]).split()

    def _access(self) -> Access:
        kubectl = shutil.which("kubectl")
        if not kubectl:
            raise ClusterError("the kind provider needs kubectl on PATH")
        if not succeeds(["docker", "info"], timeout=15.0):
            raise ClusterError("the kind provider needs a running Docker daemon, and `docker info` fails")
        return Access(self._kubeconfig, Path(kubectl))


def build_command(name: str, reference: str, repository: Path = REPOSITORY) -> list[str | Path]:
    """The `docker build` of one of our images; the context is the whole repository."""
    argv: list[str | Path] = [
        "docker",
        "build",
        "--file",
        repository / "images" / DOCKERFILES[name],
        "--tag",
        reference,
    ]
    if name == "serving":
        argv += ["--build-arg", f"BASE={CPU_BASE}"]
    return [*argv, repository]
