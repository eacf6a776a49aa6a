"""Where a cluster comes from: the interface that every provider keeps, and the choice between them.

`choose` follows `KVPOOL_CLUSTER`; unset, it takes kind where Docker runs and kind is installed, else local.
It prints which provider it took and why.  Nothing is started by choosing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from e2e.cluster.command import succeeds
from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.settings import read_settings

Mode = Literal["control", "node"]
IMAGE_NAMES = ("store", "operator", "serving", "payload")
STORE_IMAGE_NAMES = ("mooncake", "etcd", "lmcache")
"""Images of stores other than Redis and Valkey: loaded where they are named."""


def image_reference(name: str) -> str:
    """The full name under which one of our images is known in a cluster; never `latest`, so it is never pulled."""
    return f"localhost/kvpool/{name}:dev"


@dataclass(frozen=True)
class Access:
    """How to reach a cluster that is up."""

    kubeconfig: Path
    kubectl: Path
    node: str | None = None
    """The node that can mount folders of this machine, where there is such a node."""
    host: str | None = None
    """The address at which Pods (and the API server) reach servers on this machine."""

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Variables for programs that use the cluster: `KUBECONFIG` and a `PATH` with our kubectl first."""
        folder = str(self.kubectl.parent)
        path = [part for part in environ.get("PATH", os.defpath).split(os.pathsep) if part != folder]
        whole = {"KUBECONFIG": str(self.kubeconfig), "PATH": os.pathsep.join([folder, *path])}
        return whole | (without_proxy([self.host], environ) if self.host else {})


def without_proxy(hosts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Where a proxy is set: variables that keep kubectl and the servers from asking it for these hosts."""
    if not any(environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")):
        return {}
    present = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")
    together = ",".join(dict.fromkeys(each for each in [*present, *hosts] if each))
    return {"no_proxy": together, "NO_PROXY": together}


@dataclass(frozen=True)
class Row:
    """One line of `status`."""

    what: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class ImageSources:
    """What the images are made of."""

    operator: Path
    connector: Path
    requirements: Path
    """Pins with hashes of the operator's third-party packages."""

    def pins(self, name: str) -> Path:
        """Pins of a store's packages; they lie beside the operator's."""
        return self.requirements.with_name(f"{name}.txt")


class Provider(Protocol):
    """A source of clusters.  Every method may be called again after it failed or was interrupted."""

    name: str

    def up(self, mode: Mode) -> Access:
        """Start what does not run; return when the cluster can be used."""

    def down(self, *, clean: bool = False) -> None:
        """End what `up` started and nothing else; with `clean`, delete its state too."""

    def status(self) -> list[Row]:
        """What runs, without changing anything."""

    def access(self) -> Access:
        """How to reach the cluster; raises `ClusterError` when it was never started."""

    def build(self) -> None:
        """Make everything slow that `up` needs, and start nothing."""

    def load_images(self, names: Sequence[str], sources: ImageSources) -> dict[str, str]:
        """Build images from the working tree and put them into the cluster.

        Returns the reference of each image that is there now; one that is missing from the answer is the
        product's published default, which such a cluster pulls itself.
        """


def choose(name: str = "default", *, progress: Progress | None = None, port: int | None = None) -> Provider:
    """The provider for this machine, by `KVPOOL_CLUSTER` or by what the machine has."""
    from e2e.cluster.current import CurrentProvider  # the providers import this module
    from e2e.cluster.kind import KindProvider
    from e2e.cluster.local.provider import LocalProvider

    progress = progress or Progress()
    kind, reason = decide(os.environ)
    progress.say(f"cluster provider: {kind} ({reason})")
    settings = read_settings(name)
    if kind == "kind":
        return KindProvider(settings, progress)
    if kind == "current":
        return CurrentProvider(progress)
    return LocalProvider(settings, progress, port=port)


def decide(environ: Mapping[str, str]) -> tuple[str, str]:
    """The provider's name and the reason for it."""
    wanted = environ.get("KVPOOL_CLUSTER", "")
    if wanted:
        if wanted not in ("local", "kind", "current"):
            raise ClusterError(f"KVPOOL_CLUSTER is {wanted!r}: it must be local, kind or current")
        return wanted, "KVPOOL_CLUSTER says so"
    path = environ.get("PATH")
    if not shutil.which("kind", path=path):
        return "local", "kind is not installed"
    docker = shutil.which("docker", path=path)
    if not docker:
        return "local", "kind is installed, docker is not"
    if not succeeds([docker, "info"], timeout=15.0):
        return "local", "docker is installed, but no Docker daemon answers"
    return "kind", "Docker runs and kind is installed"
