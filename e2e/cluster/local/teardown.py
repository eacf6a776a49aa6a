"""Ending a cluster: everything that its `up` started, and nothing else.

Servers are ended by their identity.  What belongs to a node (Pods, mounts, the bridge, cgroups) is only looked
for when this cluster had a kubelet, so that a control plane's `down` leaves a node of another name alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

from e2e.cluster.command import run, succeeds
from e2e.cluster.local import network
from e2e.cluster.local.control import APISERVER, CONTROLLERS, ETCD, SCHEDULER
from e2e.cluster.local.layout import Layout
from e2e.cluster.local.node import CONTAINERD, KUBELET, PROXY, Containerd
from e2e.cluster.local.processes import Processes
from e2e.cluster.progress import ClusterError, Progress, wait_for

CGROUPS = Path("/sys/fs/cgroup")


class Teardown:
    """Ends one cluster."""

    def __init__(self, layout: Layout, programs: Path, processes: Processes, progress: Progress) -> None:
        self._layout = layout
        self._programs = programs
        self._processes = processes
        self._progress = progress
        self._containerd = Containerd(layout, processes)

    def end(self) -> None:
        """End all servers; for a node also its Pods, mounts, network and cgroups."""
        had_node = (self._layout.run / "kubelet").exists()
        for name in (CONTROLLERS, SCHEDULER):  # first, so that nothing makes Pods again
            self._processes.stop(name)
        if had_node:
            self._end_pods()
        for name in (PROXY, KUBELET):
            self._processes.stop(name)
        if had_node:
            self._end_containers()
        self._processes.stop(CONTAINERD)
        # The API server would wait 10 s for its clients; its state is in etcd.
        self._processes.stop(APISERVER, grace=0.5)
        self._processes.stop(ETCD)
        for mount in mounts_below(self._layout.run):  # unmounting a network namespace also ends its veth pair
            succeeds(["umount", "-l", mount])
        if had_node:
            network.remove(self._programs / "kube-proxy")
            remove_cgroups()
            _remove_log_links(self._layout.run / "pod-logs")

    def delete(self) -> None:
        """Delete the state.  A volume that is still mounted below it would be deleted with it, so that is refused."""
        left = mounts_below(self._layout.root)
        if left:
            raise ClusterError(f"nothing was deleted, since something is still mounted: {', '.join(left[:3])}")
        shutil.rmtree(self._layout.root, ignore_errors=True)

    def _end_pods(self) -> None:
        """The kubelet ends Pods in order, volumes and network included, when it still can."""
        if not (
            self._processes.alive(KUBELET) and self._processes.alive(APISERVER) and self._processes.alive(CONTAINERD)
        ):
            return
        kubectl = [f"{self._programs}/kubectl", f"--kubeconfig={self._layout.kubeconfig}"]
        force = ["--grace-period=0", "--force", "--wait=false"]
        succeeds([*kubectl, "delete", "pods", "--all", "--all-namespaces", *force])
        try:
            wait_for(20.0, "the end of all Pods", lambda: not self._tasks())
        except ClusterError as late:
            self._progress.say(f"{late}; ending them by force")

    def _tasks(self) -> list[str]:
        return run(["ctr", "tasks", "list", "-q"], env=self._containerd.environment).split()

    def _end_containers(self) -> None:
        """After a crash: containers that the kubelet did not end, processes in Pods' cgroups, containerd's shims."""
        if self._processes.alive(CONTAINERD):
            for task in self._tasks():
                succeeds(["ctr", "tasks", "delete", "--force", task], env=self._containerd.environment)
        # There can be one kubelet on a machine, and this cluster had it: these cgroups are its Pods'.
        for listing in pod_cgroups("cgroup.procs"):
            for pid in _pids(listing):
                _kill(pid)
        for pid in shims(self._layout.containerd_socket):
            _kill(pid)


def mounts_below(folder: Path) -> list[str]:
    """Mount points below a folder, deepest first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def pod_cgroups(name: str) -> list[Path]:
    """Files or folders of this name in the cgroups of Pods, in both versions of cgroups."""
    roots = [*CGROUPS.glob("kubepods"), *CGROUPS.glob("*/kubepods")]
    return [path for root in roots for path in (root, *root.rglob("*")) if path.name == name]


def remove_cgroups() -> None:
    """Remove the cgroups of Pods, which stay behind empty."""
    for root in (*CGROUPS.glob("kubepods"), *CGROUPS.glob("*/kubepods")):
        for folder, _, _ in os.walk(root, topdown=False):
            with contextlib.suppress(OSError):  # still in use: it stays, which harms nobody
                Path(folder).rmdir()


def shims(socket: Path) -> list[int]:
    """The pids of the shims that serve the containerd of this socket."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0].endswith("containerd-shim-runc-v2") and str(socket) in words:
            found.append(int(place.name))
    return found


def _pids(listing: Path) -> list[int]:
    try:
        return [int(word) for word in listing.read_text().split()]
    except OSError:
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _remove_log_links(logs: Path) -> None:
    """The kubelet's links in /var/log/containers that point to this cluster's Pod logs."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{logs}/"):
            link.unlink(missing_ok=True)
