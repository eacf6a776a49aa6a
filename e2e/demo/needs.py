"""What a demo needs of a machine, and a sentence for each thing that is missing. Pure: `preflight`
gathers the facts.

Every sentence says what is wrong and what to do. All of them are told together, so that one visit
mends all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from e2e import footprint
from e2e.cluster.local import probe
from e2e.cluster.local.layout import NODE_IP, POD_CIDR, SERVICE_CIDR
from e2e.cluster.local.oci import ARCHITECTURES

StageName = Literal["cluster", "engine"]

MEMORY_GIB: Mapping[StageName, float] = {"cluster": 8.0, "engine": 7.0}
"""Free memory: two engines at 2 GiB of programs and weights, with what the document fills of 1 GiB
of KV cache and 1 GiB of memory tier each, and 0.7 GiB in Redis; the cluster's servers take 1
GiB."""
NODE_GIB = 10.4
"""The whole memory of a node: the scheduler places two engine Pods that ask for 4 GiB each, Redis
for 2 GiB and two replicas of the operator for 0.125 GiB each only where the kubelet has so much to
give away, which is all but 0.1 GiB."""
DISK_GB: Mapping[str, float] = {
    footprint.VLLM: 8.0,
    footprint.KUBERNETES: 6.0,
    footprint.MODEL: 0.6,
}
"""What making each slow result fills, in GB: vLLM in uv's cache and an environment, Kubernetes with
Go's modules and builds."""
RUN_GB: Mapping[StageName, float] = {"cluster": 3.0, "engine": 1.0}
"""What a run fills even from warm caches: images, containers and logs."""

_FEATURES: Mapping[str, str] = {
    probe.NAMESPACES: "namespaces cannot be made here, which Pods are made of: {elsewhere}",
    probe.CGROUPS: (
        f"the cgroup controllers {', '.join(probe.CONTROLLERS)} are not all mounted and writable"
        " below /sys/fs/cgroup, which the kubelet needs: {elsewhere}"
    ),
    probe.OVERLAY: (
        "overlayfs cannot be mounted on the file system of {state}, where containers would lie:"
        " set KVPOOL_STATE to a folder on ext4 or xfs, or {elsewhere}"
    ),
    probe.BRIDGE: "a network bridge and a veth pair cannot be made here, which connect Pods: {elsewhere}",
    probe.BRIDGE_FILTER: (
        "bridged packets do not pass the packet filter, which Services need: run `modprobe"
        " br_netfilter`, or {elsewhere}"
    ),
    probe.FORWARDING: (
        "packets are not forwarded, which Pods need, and this cannot be changed here: run"
        " `sysctl -w net.ipv4.ip_forward=1` on the host, or {elsewhere}"
    ),
    probe.PACKET_FILTER: (
        "packet filter rules cannot be made here, which Services need: load the kernel modules"
        " nf_tables, nft_compat, nf_nat and nf_conntrack, or {elsewhere}"
    ),
}
_ELSEWHERE = "use a virtual machine with its own kernel, a privileged container, or `make demo-engine`"


@dataclass(frozen=True)
class Disk:
    """A file system: what a run would fill of it, in GB of 10^9 bytes."""

    folder: str
    free: float
    needed: float


@dataclass(frozen=True)
class NodeFacts:
    """What matters only where this machine is to be the cluster's node."""

    root: bool
    lacking: Sequence[str]
    """Kernel features, by their names in `probe`."""
    state: str
    """The folder in which the cluster writes."""
    ports: Sequence[int]
    """The node's ports that others have."""
    other: str | None
    """The name of another cluster of kvpool's whose node runs."""
    overlaps: Sequence[str]
    runs: bool
    """The demo's own node runs already."""


@dataclass(frozen=True)
class Facts:
    """All that is judged."""

    stage: StageName
    provider: str
    """local, kind or current; or the sentence that says why there is none."""
    avx2: bool
    """Or another kind of processor."""
    dtype: str | None
    """What is wrong with the number type that the environment asks for."""
    can_install: bool
    """uv is here, or this Python can make it."""
    memory_gib: float
    free_gib: float
    missing: Sequence[str]
    """Slow results that the cache lacks, by their names in `footprint`."""
    disks: Sequence[Disk]
    unusable: str | None
    """Why the cache's folder can't be used."""
    fetched: Sequence[str]
    """Debian packages that a run would fetch or install."""
    has_apt: bool
    unknown: Sequence[str]
    """Those of them that this machine's lists do not have."""
    programs: Sequence[str]
    """Programs that the provider needs and nobody installs."""
    node: NodeFacts | None


def wrong_platform(system: str, architecture: str) -> str | None:
    """Why nothing more can be asked of a machine."""
    if system == "Linux" and architecture in ARCHITECTURES:
        return None
    return f"this is {system} on {architecture}: use Linux on {' or '.join(ARCHITECTURES)}"


def problems(facts: Facts) -> list[str]:
    """One sentence for each thing that is missing; none: the demo can begin."""
    return [
        *_processor(facts),
        *_memory(facts),
        *_disk(facts),
        *_programs(facts),
        *(_node(facts.node) if facts.node else []),
    ]


def _processor(facts: Facts) -> list[str]:
    found = [] if facts.dtype is None else [facts.dtype]
    if not facts.avx2:
        found.append(
            "this CPU has no AVX2, which vLLM's CPU build is compiled for: use an x86 machine from 2013 or later"
        )
    return found


def _memory(facts: Facts) -> list[str]:
    """With another provider's cluster the engines do not run here; what runs already has its
    memory."""
    if facts.provider == "current" or (facts.node and facts.node.runs):
        return []
    found = []
    if facts.node and facts.memory_gib < NODE_GIB:
        found.append(
            f"this machine has {facts.memory_gib:.1f} GiB of memory and the demo's Pods ask for"
            f" {NODE_GIB:.1f}: use a larger machine, or `make demo-engine`"
        )
    needed = MEMORY_GIB[facts.stage]
    if facts.free_gib < needed:
        found.append(
            f"{facts.free_gib:.1f} GiB of memory are free and two engines need {needed:.0f}: end"
            " other programs, or use a larger machine"
        )
    return found


def _disk(facts: Facts) -> list[str]:
    found = [
        f"{disk.free:.1f} GB are free on the disk of {disk.folder} and this run fills up to"
        f" {disk.needed:.0f}: free some, or set KVPOOL_CACHE, UV_CACHE_DIR, GOMODCACHE and GOCACHE"
        " to folders on a larger disk"
        for disk in facts.disks
        if disk.free < disk.needed
    ]
    if facts.unusable:
        found.append(f"the cache cannot be used: {facts.unusable}: set KVPOOL_CACHE to another folder")
    return found


def _programs(facts: Facts) -> list[str]:
    found = []
    if not facts.can_install:
        found.append(
            "this Python 3.11 cannot make environments, and there is no uv: install python3.11-venv (Debian), or uv"
        )
    if facts.fetched and not facts.has_apt:
        found.append(f"apt-get and dpkg-deb are missing, by which the demo gets {_some(facts.fetched)}: use Debian 12")
    if facts.has_apt and facts.unknown:
        found.append(
            f"the package lists have no {_some(facts.unknown)}: run `apt-get update` as root, or use Debian 12"
        )
    if facts.provider not in ("local", "kind", "current"):
        found.append(facts.provider)
    found += [
        f"{name} is missing, which KVPOOL_CLUSTER={facts.provider} uses: install it, or unset KVPOOL_CLUSTER"
        for name in facts.programs
    ]
    return found


def _node(node: NodeFacts) -> list[str]:
    found = []
    if not node.root:
        found.append(
            "the cluster needs root (its Pods are containers): run as root, or run `make demo-engine`, which needs none"
        )
    found += [_FEATURES[name].format(state=node.state, elsewhere=_ELSEWHERE) for name in node.lacking]
    if node.other:
        found.append(
            f"kvpool's cluster {node.other!r} runs, and there can be one node on a machine: end it"
            f" with `python3.11 -m e2e.cluster down --name {node.other}`"
        )
    elif node.ports:
        found.append(
            f"port {', '.join(map(str, node.ports))} is taken, probably by another Kubernetes"
            " node, and there can be one on a machine: end it, or use it with"
            " KVPOOL_CLUSTER=current"
        )
    if node.overlaps:
        found.append(
            f"this machine's network uses {', '.join(node.overlaps)}, and the cluster takes"
            f" {POD_CIDR} (with {NODE_IP}) and {SERVICE_CIDR}: use a machine with other addresses,"
            " or `make demo-engine`"
        )
    return found


def _some(names: Sequence[str], count: int = 6) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
