"""What a machine must have, and what is installed on it, after saying so.

Control mode needs no root: etcd is unpacked into the cache when it is not on PATH.  Node mode needs root and
installs the missing ones of a few Debian packages.  A machine that cannot run a cluster is told by one sentence.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from e2e.cluster.command import run, succeeds
from e2e.cluster.local import cache
from e2e.cluster.local.debian import Apt, has_lists
from e2e.cluster.local.layout import NODE_IP, NODE_PORTS, POD_CIDR, SERVICE_CIDR, port_is_free
from e2e.cluster.local.node_config import CNI_FOLDERS
from e2e.cluster.local.oci import ARCHITECTURES
from e2e.cluster.progress import POLL_SECONDS, ClusterError, Progress
from e2e.cluster.provider import without_proxy

# Which Debian package has a program that a node needs.
NODE_PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
}
CNI_PLUGINS, CNI_PACKAGE = ("bridge", "host-local", "portmap"), "containernetworking-plugins"
PORT_SECONDS = 3.0
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check_kind() -> None:
    """Raise unless this is a kind of machine that the programs are built for."""
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        raise ClusterError(
            f"the local cluster runs on Linux x86_64 and aarch64, and this is {platform.system()} {platform.machine()}:"
            " use KVPOOL_CLUSTER=kind or current"
        )


def check_node(ours: Collection[str]) -> None:
    """Raise unless this user and machine can run a node, of which the servers `ours` run already."""
    if os.geteuid() != 0:
        raise ClusterError("a node needs root (its Pods are containers): run as root, or take --mode control")
    if not Path("/proc/self/ns/net").exists() or not any(Path("/sys/fs/cgroup").glob("*")):
        raise ClusterError("a node needs network namespaces and cgroups, and this kernel shows none")
    if taken := taken_ports(ours):
        raise ClusterError(
            f"port {taken[0]} is taken: another Kubernetes node runs on this machine, and there can be one"
        )


def taken_ports(ours: Collection[str]) -> list[int]:
    """The node's ports that others have, while the servers `ours` run already."""
    ports = [port for server, ports in NODE_PORTS.items() if server not in ours for port in ports]
    deadline = time.monotonic() + PORT_SECONDS  # a server that was just killed has its ports a moment longer
    while taken := [port for port in ports if not port_is_free(port)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    return taken


def extend_environment() -> None:
    """Look in the sbin folders too, which a user's PATH often lacks, and ask no proxy for the cluster's addresses."""
    parts = os.environ.get("PATH", "").split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*parts, *(each for each in SYSTEM_PATH.split(":") if each not in parts)])
    os.environ.update(without_proxy(["127.0.0.1", NODE_IP, POD_CIDR, SERVICE_CIDR, ".svc"], os.environ))


def cni_folder() -> Path | None:
    """The folder with the CNI plugins."""
    return next((place for place in CNI_FOLDERS if all((place / name).exists() for name in CNI_PLUGINS)), None)


def missing_packages() -> list[str]:
    """Debian packages with programs that a node needs and this machine lacks."""
    packages = {package for program, package in NODE_PROGRAMS.items() if not shutil.which(program)}
    if not cni_folder():
        packages.add(CNI_PACKAGE)
    return sorted(packages)


def install_missing(progress: Progress) -> None:
    """Install what a node needs; says what, before it does."""
    packages = missing_packages()
    if not packages:
        return
    if not shutil.which("apt-get"):
        raise ClusterError(
            f"a node needs {', '.join(packages)}, and there is no apt-get here to install them: install them"
        )
    progress.say(f"this will install Debian packages on this machine: {' '.join(packages)}")
    if not has_lists():
        with progress.during("apt-get update"):
            run(["apt-get", "-qq", "update"])
    install = ["apt-get", "-qq", "-y", "--no-install-recommends", "install", *packages]
    with progress.during("apt-get install"):
        run(install, env={"DEBIAN_FRONTEND": "noninteractive"})
    if Path("/run/systemd/system").is_dir() and "containerd" in packages:
        # Our containerd has its own socket and folders; the packaged service would only take memory.
        progress.say("disabling the service that came with the package: containerd")
        succeeds(["systemctl", "disable", "--now", "containerd"])
    still = missing_packages()
    if still:
        raise ClusterError(f"after installing, this machine still lacks: {', '.join(still)}")


def etcd(cache_folder: Path, progress: Progress) -> Path:
    """The etcd program: from PATH, or from Debian's package, unpacked into the cache without root."""
    present = shutil.which("etcd")
    if present:
        return Path(present)

    def make(place: Path) -> None:
        with progress.during("etcd is not installed: unpacking Debian's etcd-server into the cache"):
            Apt(cache_folder, progress).unpack(["etcd-server"], place)

    inputs: list[str | bytes | Path] = [platform.machine(), Path("/etc/os-release")]
    return cache.folder(cache_folder, "etcd", inputs, make, progress) / "usr/bin/etcd"
