"""Servers and their identity: a pid alone proves nothing."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.local.processes import Processes, end, is_alive, parse_stat, read_record
from e2e.cluster.progress import ClusterError, wait_for
from testkit.patience import PATIENCE_S


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    servers = Processes(tmp_path, tmp_path)
    yield servers
    servers.stop("server", grace=0.0)


def record(processes: Processes, tmp_path: Path) -> Path:
    assert processes.start("server", ["sleep", "300"])
    return tmp_path / "server.pid"


def test_a_started_server_is_known_and_not_started_twice(processes: Processes, tmp_path: Path) -> None:
    path = record(processes, tmp_path)
    identity = processes.identity("server")
    assert identity is not None
    wait_for(PATIENCE_S, "the server", lambda: Path(f"/proc/{identity.pid}/comm").read_text() == "sleep\n")
    assert not processes.start("server", ["sleep", "300"])
    assert read_record(path) == identity


def test_a_pid_that_was_given_to_another_process_is_not_ours(processes: Processes, tmp_path: Path) -> None:
    path = record(processes, tmp_path)
    stat, boot = path.read_text().splitlines()
    words = stat.split()
    words[21] = str(int(words[21]) - 1)  # the record of a process that started earlier and had the same pid
    true = processes.identity("server")
    path.write_text(" ".join(words) + f"\n{boot}\n")
    assert not processes.alive("server")
    processes.stop("server")  # must not touch the process that has the pid now
    assert is_alive(true)
    assert true is not None
    end(true, 5.0)


def test_a_record_of_another_boot_counts_for_nothing(processes: Processes, tmp_path: Path) -> None:
    path = record(processes, tmp_path)
    true = processes.identity("server")
    path.write_text(path.read_text().splitlines()[0] + "\n00000000-0000-0000-0000-000000000000\n")
    assert not processes.alive("server")
    assert true is not None
    end(true, 5.0)


@pytest.mark.parametrize("text", ["", "12", "12 (sh) S\n", "not a record\nboot\n"])
def test_a_record_that_cannot_be_read_counts_for_nothing(processes: Processes, tmp_path: Path, text: str) -> None:
    (tmp_path / "server.pid").write_text(text)
    assert not processes.alive("server")
    assert not processes.stop("server")


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    child = subprocess.Popen(["sh", "-c", f"cat /proc/$$/stat /proc/sys/kernel/random/boot_id >{tmp_path}/z"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    identity = read_record(tmp_path / "z")
    assert identity is not None
    assert identity.pid == child.pid
    assert not is_alive(identity)
    child.wait()


def test_stop_ends_a_server_that_ignores_sigterm(processes: Processes) -> None:
    processes.start("server", ["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"])
    identity = processes.identity("server")
    assert processes.stop("server", grace=0.2)
    assert not is_alive(identity)


def test_a_server_that_ended_is_reported_with_its_last_words(processes: Processes) -> None:
    processes.start("server", ["sh", "-c", "echo no such flag >&2; exit 1"])
    wait_for(PATIENCE_S, "its end", lambda: not processes.alive("server"))
    with pytest.raises(ClusterError, match=r"server ended(?s:.*)no such flag"):
        processes.check(["server"])


def test_the_name_in_a_stat_line_may_hold_spaces_and_brackets() -> None:
    tail = " ".join(["S", *(str(number) for number in range(4, 53))])
    assert parse_stat(f"7 (a) b (c) {tail}\n") == (7, "S", 22)
