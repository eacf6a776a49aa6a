"""The questions that are asked of this machine before a demo, and what is printed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from e2e import footprint
from e2e.cluster.local import machine, probe
from e2e.cluster.local.layout import Layout, Started
from e2e.cluster.local.processes import Processes
from e2e.cluster.settings import REPOSITORY, Settings
from e2e.demo import preflight
from e2e.demo.needs import DISK_GB, RUN_GB


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache with nothing in it, all on one file system, and a state folder with a path short enough for sockets.

    apt is not asked: reading its lists takes seconds.
    """
    monkeypatch.setattr(preflight, "unknown", lambda fetched: [])
    for name in ("KVPOOL_CACHE", "UV_CACHE_DIR", "GOCACHE", "GOMODCACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("KVPOOL_CLUSTER", "local")
    with tempfile.TemporaryDirectory(prefix="s") as state:
        monkeypatch.setenv("KVPOOL_STATE", state)
        yield tmp_path / "KVPOOL_CACHE"


def test_it_runs_on_the_standard_library_alone(empty: Path) -> None:
    """Nothing is installed when it is called: -I -S hides what the tests' environment has."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import e2e.demo.preflight as p; print(p.gather('cluster'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(REPOSITORY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Facts(stage='cluster', provider='local'")
    assert not empty.exists()


def test_this_machine_is_seen_as_it_is(empty: Path) -> None:
    facts = preflight.gather("engine")
    assert facts.node is None
    assert facts.missing == [footprint.VLLM, footprint.MODEL]
    assert 0 < facts.free_gib <= facts.memory_gib
    (disk,) = facts.disks
    assert disk.needed == RUN_GB["engine"] + DISK_GB[footprint.VLLM] + DISK_GB[footprint.MODEL]
    assert disk.free > 0


def test_the_state_of_the_caches_is_all_of_standard_output(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "problems", lambda facts: [])
    assert preflight.main(["engine"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "cold: without vLLM's environment, the model\n"
    assert "this machine has what is needed" in printed.err


def test_every_sentence_is_told_and_the_demo_does_not_begin(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "problems", lambda facts: ["one", "two"])
    assert preflight.main(["cluster"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[:2] == ["demo: one", "demo: two"]


def test_another_kind_of_machine_is_asked_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(preflight, "gather", lambda stage: pytest.fail("it was asked"))
    assert preflight.main(["engine"]) == 1
    assert "this is Darwin" in capsys.readouterr().err


def test_wrong_arguments_are_refused() -> None:
    assert preflight.main([]) == 2
    assert preflight.main(["moon"]) == 2


def test_an_unknown_provider_becomes_a_sentence(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVPOOL_CLUSTER", "moon")
    facts = preflight.gather("cluster")
    assert "'moon': it must be local" in facts.provider
    assert facts.node is None


def test_the_node_is_not_asked_for_where_the_cluster_is_elsewhere(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVPOOL_CLUSTER", "current")
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(machine, "SYSTEM_PATH", str(empty))
    facts = preflight.gather("cluster")
    assert facts.node is None
    assert facts.programs == ["kubectl"]
    assert footprint.KUBERNETES not in facts.missing


def test_our_own_servers_are_ours_and_those_of_another_cluster_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stand-ins run under the kubelet's name, for a real one takes a whole cluster; their records are real."""
    monkeypatch.setattr(probe, "lacking", lambda place: [])
    asked: list[Collection[str]] = []

    def taken_ports(ours: Collection[str]) -> list[int]:
        asked.append(ours)
        return []

    monkeypatch.setattr(machine, "taken_ports", taken_ports)
    clusters: list[Processes] = []
    try:
        for name in ("demo", "stores"):
            layout = Layout(tmp_path / name)
            layout.make()
            layout.write_started(Started("node", 16443, "/bin"))
            clusters.append(Processes(layout.run, layout.log))
            clusters[-1].start("kubelet", ["sleep", "60"])
        facts = preflight.node_facts(Settings("demo", tmp_path, tmp_path))
        assert facts.runs
        assert asked == [["kubelet"]]
        assert facts.other == "stores"
        clusters[1].stop("kubelet")
        assert preflight.node_facts(Settings("demo", tmp_path, tmp_path)).other is None
    finally:
        for cluster in clusters:
            cluster.stop("kubelet")


def test_packages_that_are_cached_are_not_fetched(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(empty / "bin"))
    monkeypatch.setattr(machine, "missing_packages", lambda: ["containerd"])
    assert preflight.packages(empty, node=False) == ["redis-server", "libibverbs1"]
    whole = preflight.packages(empty, node=True)
    assert {"containerd", "etcd-server", "python3.11-minimal"} < set(whole)
    assert len(whole) == len(set(whole))
    server = empty / "redis/usr/bin/redis-server"
    server.parent.mkdir(parents=True)
    server.touch()
    for name in ("mooncake-0", "etcd-0", "layer-store-0", "layer-python-0", "layer-serving-0"):
        (empty / name).mkdir()
    assert preflight.packages(empty, node=False) == []
    assert preflight.packages(empty, node=True) == ["containerd"]


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight.unusable_folder(tmp_path / "deep/below") is None
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert preflight.unusable_folder(tmp_path / "deep") == f"{tmp_path} cannot be written"


def test_caches_on_two_disks_are_measured_apart(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems are told apart by a stand-in: a test cannot mount a second one without root."""
    monkeypatch.setattr(preflight, "device", lambda folder: "UV_CACHE_DIR" in folder.name)
    settings = Settings("demo", empty, empty / "state")
    first, second = preflight.disks("cluster", list(DISK_GB), settings)
    assert first.folder == str(empty / "state")
    assert first.needed == pytest.approx(RUN_GB["cluster"] + sum(DISK_GB.values()))
    assert second.needed == DISK_GB[footprint.VLLM]
