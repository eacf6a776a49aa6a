"""Names, addresses, ports and folders of a local cluster.

The Pod bridge's address is the node's only address, so nothing depends on the machine's own network.
Everything a cluster writes is below its root folder; `cluster.json` there says how it was started.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.cluster.progress import ClusterError
from e2e.cluster.provider import Mode

NODE = "local"
NODE_IP = "10.244.0.1"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"
BRIDGE = "kvpool0"
CNI_NETWORK = "kvpool-local"

FIRST_PORT = 16443
PORTS_EACH = 5
# Ports that cannot be chosen, by the server that has them: there can be one node per machine.
NODE_PORTS = {"kubelet": (10248, 10250), "proxy": (10249, 10256)}


@dataclass(frozen=True)
class Ports:
    """Five ports in a row, by their first."""

    first: int

    @property
    def api(self) -> int:
        """kube-apiserver."""
        return self.first

    @property
    def controller_manager(self) -> int:
        """kube-controller-manager."""
        return self.first + 1

    @property
    def scheduler(self) -> int:
        """kube-scheduler."""
        return self.first + 2

    @property
    def etcd(self) -> int:
        """etcd for clients."""
        return self.first + 3

    @property
    def etcd_peer(self) -> int:
        """etcd for its peers, of which there are none."""
        return self.first + 4


@dataclass(frozen=True)
class Started:
    """What `up` was asked for; `down`, `env` and `status` go by it, from whatever checkout."""

    mode: Mode
    port: int
    programs: str
    """The folder with kubectl, as `up` used it."""


@dataclass(frozen=True)
class Layout:
    """The folders of one cluster."""

    root: Path

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def conf(self) -> Path:
        """Configuration files and kubeconfigs."""
        return self.root / "conf"

    @property
    def run(self) -> Path:
        """Records of processes, sockets, etcd's data, containers."""
        return self.root / "run"

    @property
    def log(self) -> Path:
        """One log per server."""
        return self.root / "log"

    @property
    def audit_log(self) -> Path:
        """What the API server was asked for by kvpool's operator, a JSON object a line."""
        return self.log / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        """containerd's socket; its path is the longest of all sockets here."""
        return self.run / "containerd" / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.conf / "admin.kubeconfig"

    def make(self) -> None:
        """Make the folders; keys are in them, so they are for this user alone, but Pods' volumes need `run`."""
        for folder in (self.root, self.conf, self.run, self.log):
            folder.mkdir(parents=True, exist_ok=True)
        self.conf.chmod(0o700)

    def started(self) -> Started | None:
        """How the cluster was started; None when it was not."""
        try:
            return Started(**json.loads((self.root / "cluster.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_started(self, started: Started) -> None:
        """Note how the cluster is started, before anything is."""
        put(self.root / "cluster.json", json.dumps(asdict(started)) + "\n")


def put(path: Path, text: str) -> bool:
    """Write a file when its text changes, whole or not at all.  (kube-proxy exits when its file is written.)"""
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(text)
    unfinished.chmod(0o600)
    unfinished.replace(path)
    return True


def free_ports(state: Path, name: str, wanted: int | None = None) -> Ports:
    """Ports for the cluster `name` that neither a server nor another cluster's notes have."""
    taken = {
        started.port
        for folder in (state.iterdir() if state.is_dir() else ())
        if folder.name != name and (started := Layout(folder).started())
    }
    choices = [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + 50 * PORTS_EACH, PORTS_EACH)
    for first in choices:
        if not any(abs(first - other) < PORTS_EACH for other in taken) and _all_free(first):
            return Ports(first)
    if wanted:
        raise ClusterError(
            f"one of the ports {wanted} to {wanted + PORTS_EACH - 1} is taken: choose others with --port"
        )
    raise ClusterError("no five free ports in a row were found: choose some with --port")


def _all_free(first: int) -> bool:
    return all(port_is_free(port) for port in range(first, first + PORTS_EACH))


def port_is_free(port: int, address: str = "0.0.0.0") -> bool:  # noqa: S104  (a probe, closed at once)
    """True when a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
