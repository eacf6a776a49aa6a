"""Ports, files and what a machine lacks."""

import os
import platform
import socket
from pathlib import Path

import pytest

from e2e.cluster.__main__ import main, table
from e2e.cluster.local import machine
from e2e.cluster.local.layout import FIRST_PORT, PORTS_EACH, Layout, Started, free_ports, put
from e2e.cluster.progress import ClusterError, Progress, wait_for
from e2e.cluster.provider import Row


def test_a_second_cluster_takes_other_ports_even_while_the_first_is_down(tmp_path: Path) -> None:
    first = free_ports(tmp_path, "a")
    layout = Layout(tmp_path / "a")
    layout.make()
    layout.write_started(Started("control", first.first, "/bin"))
    second = free_ports(tmp_path, "b")
    assert abs(second.first - first.first) >= PORTS_EACH
    assert free_ports(tmp_path, "a") == first  # its own note does not stand in its way


def test_a_port_with_a_listener_is_not_taken(tmp_path: Path) -> None:
    wanted = free_ports(tmp_path, "a").first
    with socket.create_server(("127.0.0.1", wanted + 2)):
        assert free_ports(tmp_path, "a").first != wanted
        with pytest.raises(ClusterError, match=f"ports {wanted} to {wanted + 4} is taken"):
            free_ports(tmp_path, "a", wanted)
    assert wanted >= FIRST_PORT


def test_put_writes_only_what_changes(tmp_path: Path) -> None:
    path = tmp_path / "conf" / "proxy.yaml"
    assert put(path, "one")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert not put(path, "one")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert put(path, "two")
    assert path.read_text() == "two"


@pytest.mark.parametrize("text", ["", "{}", '{"mode": "node"}', "[]", "{"])
def test_a_damaged_note_is_no_cluster(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    assert Layout(tmp_path).started() is None


def test_a_node_without_root_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"needs root.*--mode control"):
        machine.check_node([])


def test_a_second_node_is_refused_and_our_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine, "PORT_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(machine, "NODE_PORTS", {"proxy": (port,)})
        with pytest.raises(ClusterError, match=f"port {port} is taken: another Kubernetes node"):
            machine.check_node(["kubelet"])
        machine.check_node(["kubelet", "proxy"])


def test_another_kind_of_machine_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(ClusterError, match="this is Darwin"):
        machine.check_kind()


def test_missing_programs_name_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "CNI_FOLDERS", (tmp_path / "cni",))
    assert machine.missing_packages() == sorted({*machine.NODE_PROGRAMS.values(), machine.CNI_PACKAGE})
    with pytest.raises(ClusterError, match=r"conntrack, containerd.*no apt-get"):
        machine.install_missing(Progress())


def test_waiting_ends_at_once_when_it_cannot_come() -> None:
    with pytest.raises(ClusterError, match="the node will not come: kubelet ended"):
        wait_for(60, "the node", lambda: False, lambda: "kubelet ended")
    with pytest.raises(ClusterError, match="the node was not there after 0 s"):
        wait_for(0, "the node", lambda: False)


def test_the_command_answers_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVPOOL_CLUSTER", "local")
    monkeypatch.setenv("KVPOOL_STATE", str(tmp_path))
    assert main(["env"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1] == "e2e.cluster: there is no cluster named default: run `up` first"


def test_a_table_has_columns() -> None:
    assert table([Row("etcd", "pid 1", "log"), Row("x", "ended")]) == "etcd  pid 1  log\nx     ended"
