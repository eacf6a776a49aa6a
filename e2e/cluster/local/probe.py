"""What a kernel, or the container that this runs in, gives to a node. Nothing is changed: trials
end with a namespace of their own.

`lacking` is asked before minutes are spent on building a cluster; it needs root for its trials and
the standard library alone. A question for which this machine has no program yet (it would be
installed later) is not answered with a refusal.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from e2e.cluster.command import succeeds

NAMESPACES, CGROUPS, OVERLAY = "namespaces", "cgroups", "overlayfs"
BRIDGE, BRIDGE_FILTER, FORWARDING, PACKET_FILTER = (
    "bridge",
    "br_netfilter",
    "forwarding",
    "packet filter",
)
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
"""Of cgroups: the kubelet refuses to start without the first three, and runc limits Pods with the
last."""

_CGROUPS = Path("/sys/fs/cgroup")
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_BRIDGE_FILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_NETLINK_NETFILTER = 12
_GET_GENERATION = 10 << 8 | 16  # nf_tables' subsystem and its message that only asks (linux/netfilter/nf_tables.h)


def lacking(place: Path) -> list[str]:
    """The features that a node does not find here, by the names above.

    Args:
        place: an existing folder on the file system that the cluster's containers will lie on.
    """
    checks: dict[str, Callable[[], bool]] = {
        NAMESPACES: _has_namespaces,
        CGROUPS: lambda: has_cgroups(_CGROUPS),
        OVERLAY: lambda: _mounts_overlay(place),
        BRIDGE: _makes_bridge,
        # Loaded by `network.make` where it is a module.
        BRIDGE_FILTER: lambda: is_on(_BRIDGE_FILTER) or succeeds(["modprobe", "-n", "br_netfilter"]),
        FORWARDING: lambda: is_on(_FORWARD),
        PACKET_FILTER: _filters_packets,
    }
    return [name for name, check in checks.items() if not check()]


def _has_namespaces() -> bool:
    """Pods need a network, mounts, processes, names and IPC of their own."""
    if not all(Path(f"/proc/self/ns/{kind}").exists() for kind in ("net", "mnt", "pid", "uts", "ipc")):
        return False
    return _alone("--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "true")


def has_cgroups(root: Path) -> bool:
    """True when the controllers are there, in either version of cgroups, and folders can be made in
    them."""
    unified = root / "cgroup.controllers"
    if unified.exists():
        return set(CONTROLLERS) <= set(unified.read_text().split()) and os.access(root, os.W_OK)
    return all((root / name).is_dir() and os.access(root / name, os.W_OK) for name in CONTROLLERS)


def is_on(setting: Path) -> bool:
    """True when a kernel setting is 1 or can be made so; containers often see their settings
    read-only."""
    try:
        return setting.read_text().strip() == "1" or os.access(setting, os.W_OK)
    except OSError:
        return False


def _mounts_overlay(place: Path) -> bool:
    """On top of another overlay, as in most containers, overlayfs cannot be mounted: only a trial
    tells."""
    if not shutil.which("unshare"):
        return any(line.split()[-1] == "overlay" for line in Path("/proc/filesystems").read_text().splitlines())
    with tempfile.TemporaryDirectory(prefix=".kvpool-overlay-", dir=place) as folder:
        for name in ("lower", "upper", "work", "whole"):
            (Path(folder) / name).mkdir()
        # Relative names: a comma or colon in the folder's own would be read as an option's end.
        mount = 'cd "$0" && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay whole'
        return _alone("--mount", "sh", "-c", mount, folder)


def _makes_bridge() -> bool:
    if not shutil.which("ip"):
        return True
    make = "ip link add kvpool-b type bridge && ip link add kvpool-v type veth peer name kvpool-w"
    return _alone("--net", "sh", "-c", make)


def _filters_packets() -> bool:
    """Rules like kube-proxy's and the CNI plugins' can be made; before iptables is installed:
    nf_tables answers."""
    if not shutil.which("iptables"):
        return _has_nf_tables()
    rules = (
        "iptables -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE",
        "iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j RETURN",
        "iptables -t nat -A OUTPUT -p tcp -m statistic --mode random --probability 0.5 -j DNAT"
        " --to-destination 127.0.0.1:1",
        "iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "iptables -A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
    )
    return _alone("--net", "sh", "-c", " && ".join(rules))


def _has_nf_tables() -> bool:
    """Ask the kernel for the generation of its rules, which it numbers when it has nf_tables."""
    message = struct.pack("=IHHIIBBH", 20, _GET_GENERATION, 1, 1, 0, 0, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
            kernel.settimeout(2.0)
            kernel.send(message)
            answer = kernel.recv(4096)
    except OSError:
        return False
    kind: int = struct.unpack_from("=H", answer, 4)[0]
    return kind != 2  # NLMSG_ERROR


def _alone(*words: str) -> bool:
    """True when this succeeds in namespaces of its own, with which all that it made ends."""
    return not shutil.which("unshare") or succeeds(["unshare", *words])
