"""What a kernel gives to a node, and which addresses of a machine are in a cluster's way."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from e2e.cluster.local import addresses, probe
from e2e.cluster.local.addresses import Route

TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
        +-- 10.96.0.0/31 1 0 0
           |-- 10.96.0.1
              /32 link BROADCAST
              /32 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 192.0.2.255
              /32 link BROADCAST
Local:
           |-- 127.0.0.1
              /32 host LOCAL
"""
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
vpn0\t0000600A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""
NOWHERE = IPv4Address(0)


def test_addresses_are_read_once_each() -> None:
    assert addresses.own_addresses(TRIE) == [IPv4Address("10.96.0.1"), IPv4Address("127.0.0.1")]
    assert addresses.own_addresses("") == []


def test_routes_are_read_in_the_order_of_the_machines_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.ntohl", lambda word: int.from_bytes(word.to_bytes(4, "little"), "big"))
    assert addresses.own_routes(ROUTES) == [
        Route("eth0", IPv4Network("0.0.0.0/0"), IPv4Address("192.0.2.1")),
        Route("vpn0", IPv4Network("10.96.0.0/16"), NOWHERE),
    ]


def test_name_servers_of_version_four_are_read() -> None:
    text = "# nameserver 1.1.1.1\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver\nsearch a\n"
    assert addresses.name_servers(text) == [IPv4Address("10.96.0.10")]


def test_what_lies_in_the_clusters_ranges_is_told() -> None:
    pods = Route("cni0", IPv4Network("10.244.0.0/24"), NOWHERE)
    through = Route("eth0", IPv4Network("10.0.0.0/8"), IPv4Address("10.244.0.9"))
    assert addresses.conflicts([IPv4Address("10.244.0.7")], [pods, through], [IPv4Address("10.96.0.10")]) == [
        "address 10.244.0.7",
        "route 10.244.0.0/24 of cni0",
        "gateway 10.244.0.9 of eth0",
        "name server 10.96.0.10",
    ]


def test_a_wider_network_is_not_in_the_way() -> None:
    wide = Route("eth0", IPv4Network("10.0.0.0/8"), NOWHERE)
    default = Route("eth0", IPv4Network("0.0.0.0/0"), IPv4Address("192.168.1.1"))
    assert addresses.conflicts([IPv4Address("10.1.2.3")], [wide, default], [IPv4Address("127.0.0.53")]) == []


def test_unified_cgroups_need_all_controllers(tmp_path: Path) -> None:
    listing = tmp_path / "cgroup.controllers"
    listing.write_text("cpuset cpu io memory hugetlb pids\n")
    assert probe.has_cgroups(tmp_path)
    listing.write_text("cpuset cpu memory\n")
    assert not probe.has_cgroups(tmp_path)


def test_each_controller_of_the_first_version_is_a_folder(tmp_path: Path) -> None:
    for name in probe.CONTROLLERS:
        assert not probe.has_cgroups(tmp_path)
        (tmp_path / name).mkdir()
    assert probe.has_cgroups(tmp_path)


def test_cgroups_that_are_read_only_are_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container sees them. A stand-in answers for the kernel: a test cannot mount without root."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert not probe.has_cgroups(tmp_path)


def test_a_setting_is_on_or_can_be_turned_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "ip_forward"
    assert not probe.is_on(setting)
    setting.write_text("0\n")
    assert probe.is_on(setting)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert not probe.is_on(setting)
    setting.write_text("1\n")
    assert probe.is_on(setting)


def test_each_trial_that_fails_names_its_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of the machine that tests run on gives what it gives, so its refusals are stand-ins."""
    monkeypatch.setattr(probe, "_alone", lambda *words: False)
    monkeypatch.setattr(probe, "succeeds", lambda words: False)
    monkeypatch.setattr(probe, "_has_nf_tables", lambda: False)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    monkeypatch.setattr(probe, "_FORWARD", tmp_path / "absent")
    monkeypatch.setattr(probe, "_BRIDGE_FILTER", tmp_path / "absent")
    monkeypatch.setattr("shutil.which", lambda name: None if name == "iptables" else f"/bin/{name}")
    assert probe.lacking(tmp_path) == [
        probe.NAMESPACES,
        probe.CGROUPS,
        probe.OVERLAY,
        probe.BRIDGE,
        probe.BRIDGE_FILTER,
        probe.FORWARDING,
        probe.PACKET_FILTER,
    ]
    assert not list(tmp_path.iterdir())


def test_a_program_that_is_not_installed_yet_is_no_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert probe._makes_bridge()
