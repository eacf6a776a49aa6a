"""Where things are kept, and which environment variables say otherwise.

`KVPOOL_CACHE`  what is slow to make and never changes: binaries, image layers (default `~/.cache/kvpool`)
`KVPOOL_STATE`  what a running cluster writes: keys, sockets, logs, etcd's data (default `<cache>/state`)
`KVPOOL_CLUSTER`  the provider: local, kind or current
`KUBEBUILDER_ASSETS`  a folder with etcd, kube-apiserver and kubectl, for the control plane alone

Nothing here is in the checkout: a second checkout finds the first one's binaries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.progress import ClusterError

REPOSITORY = Path(__file__).resolve().parents[2]

# A unix socket's path ends at 107 bytes; this is the longest of ours below a cluster's state folder.
SOCKET_PATH_LIMIT = 107
LONGEST_SOCKET = "run/containerd/containerd.sock.ttrpc"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Settings:
    """One cluster's name and the folders of this user."""

    name: str
    cache: Path
    state: Path
    assets: Path | None = None

    @property
    def root(self) -> Path:
        """The folder with all that the cluster of this name writes."""
        return self.state / self.name


def read_settings(name: str = "default", environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment; raises `ClusterError` for a name or a folder that cannot work."""
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"cluster name {name!r} must be 1 to 32 of a-z, 0-9 and '-', and begin and end with a letter or digit"
        )
    cache = Path(environ.get("KVPOOL_CACHE") or Path.home() / ".cache" / "kvpool").expanduser().absolute()
    state = Path(environ.get("KVPOOL_STATE") or cache / "state").expanduser().absolute()
    assets = environ.get("KUBEBUILDER_ASSETS")
    settings = Settings(name, cache, state, Path(assets).absolute() if assets else None)
    length = len(os.fsencode(settings.root / LONGEST_SOCKET))
    if length > SOCKET_PATH_LIMIT:
        raise ClusterError(
            f"the state folder {settings.root} is {length - SOCKET_PATH_LIMIT} bytes too long for unix sockets:"
            " set KVPOOL_STATE to a shorter path"
        )
    return settings
