"""One sentence for each thing that a machine lacks, and none for a machine that lacks nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from e2e.cluster.local import probe
from e2e.demo.needs import (
    MEMORY_GIB,
    NODE_GIB,
    Disk,
    Facts,
    NodeFacts,
    problems,
    wrong_platform,
)

NODE = NodeFacts(root=True, lacking=[], state="/s", ports=[], other=None, overlaps=[], runs=False)
GOOD = Facts(
    stage="cluster",
    provider="local",
    avx2=True,
    dtype=None,
    can_install=True,
    memory_gib=16.0,
    free_gib=12.0,
    missing=[],
    disks=[Disk("/c", 20.0, 3.0)],
    unusable=None,
    fetched=["containerd"],
    has_apt=True,
    unknown=[],
    programs=[],
    node=NODE,
)


def told(**changes: Any) -> list[str]:
    """The sentences for a good machine with these changes."""
    return problems(dataclasses.replace(GOOD, **changes))


def told_of_node(**changes: Any) -> list[str]:
    """The sentences for a good machine whose facts as a node have these changes."""
    return told(node=dataclasses.replace(NODE, **changes))


def test_nothing_is_said_about_a_machine_that_has_all() -> None:
    assert told() == []
    assert told(stage="engine", node=None) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"avx2": False}, ["no AVX2", "use an x86 machine"]),
        ({"dtype": "KVPOOL_DTYPE is 'int8'"}, ["KVPOOL_DTYPE is 'int8'"]),
        ({"can_install": False}, ["no uv", "install python3.11-venv"]),
        ({"memory_gib": NODE_GIB - 0.1}, ["10.3 GiB of memory", "ask for 10.4", "make demo-engine"]),
        ({"free_gib": MEMORY_GIB["cluster"] - 0.1}, ["7.9 GiB of memory are free", "need 8"]),
        (
            {"disks": [Disk("/c", 20.0, 3.0), Disk("/d", 8.0, 14.0)]},
            ["8.0 GB are free on the disk of /d", "up to 14", "KVPOOL_CACHE"],
        ),
        ({"unusable": "/c is mounted noexec"}, ["/c is mounted noexec", "set KVPOOL_CACHE"]),
        ({"has_apt": False}, ["apt-get and dpkg-deb", "gets containerd", "use Debian 12"]),
        (
            {"unknown": ["python3.11-minimal"]},
            ["no python3.11-minimal", "apt-get update", "Debian 12"],
        ),
        ({"provider": "KVPOOL_CLUSTER is 'x': it must be local"}, ["it must be local"]),
        (
            {"provider": "current", "programs": ["kubectl"], "node": None},
            ["kubectl is missing", "KVPOOL_CLUSTER=current", "install it"],
        ),
    ],
)
def test_each_lack_has_a_sentence_with_its_remedy(changes: dict[str, Any], words: list[str]) -> None:
    (sentence,) = told(**changes)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"root": False}, ["needs root", "make demo-engine"]),
        ({"lacking": [probe.NAMESPACES]}, ["namespaces", "virtual machine"]),
        ({"lacking": [probe.CGROUPS]}, ["cgroup controllers cpu, cpuset, memory, pids", "kubelet"]),
        ({"lacking": [probe.OVERLAY]}, ["overlayfs", "of /s", "KVPOOL_STATE"]),
        ({"lacking": [probe.BRIDGE]}, ["bridge and a veth pair", "virtual machine"]),
        ({"lacking": [probe.BRIDGE_FILTER]}, ["modprobe br_netfilter"]),
        ({"lacking": [probe.FORWARDING]}, ["sysctl -w net.ipv4.ip_forward=1"]),
        ({"lacking": [probe.PACKET_FILTER]}, ["nf_tables"]),
        ({"ports": [10250, 10256]}, ["port 10250, 10256 is taken", "KVPOOL_CLUSTER=current"]),
        ({"other": "stores", "ports": [10250]}, ["'stores' runs", "e2e.cluster down --name stores"]),
        ({"overlaps": ["route 10.96.0.0/16 of eth1"]}, ["route 10.96.0.0/16 of eth1", "10.244.0.0/24"]),
    ],
)
def test_each_lack_of_a_node_has_a_sentence_with_its_remedy(changes: dict[str, Any], words: list[str]) -> None:
    (sentence,) = told_of_node(**changes)
    for word in words:
        assert word in sentence


def test_all_is_told_at_once() -> None:
    node = dataclasses.replace(NODE, root=False, ports=[10250])
    assert len(told(free_gib=1.0, can_install=False, node=node)) == 4


def test_a_demo_that_runs_already_needs_no_second_share_of_memory() -> None:
    assert told(free_gib=1.0, node=dataclasses.replace(NODE, runs=True)) == []


def test_engines_on_another_cluster_need_no_memory_here() -> None:
    assert told(provider="current", free_gib=1.0, memory_gib=2.0, node=None) == []


def test_the_engines_alone_ask_for_less_memory_than_with_a_cluster() -> None:
    less = {"memory_gib": 8.0, "free_gib": MEMORY_GIB["engine"]}
    assert told(stage="engine", node=None, **less) == []
    assert len(told(**less)) == 2


def test_a_long_list_of_packages_is_cut() -> None:
    (sentence,) = told(has_apt=False, fetched=[f"p{number}" for number in range(9)])
    assert "p0, p1, p2, p3, p4, p5 and 3 more" in sentence


def test_another_system_is_told_by_name() -> None:
    assert wrong_platform("Linux", "x86_64") is None
    assert wrong_platform("Linux", "aarch64") is None
    assert wrong_platform("Darwin", "arm64") == "this is Darwin on arm64: use Linux on x86_64 or aarch64"
    assert "riscv64" in (wrong_platform("Linux", "riscv64") or "")
