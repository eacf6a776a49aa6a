"""The journal on a full, a hanging and a foreign disk: the caller neither waits nor fails, and there is one owner."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from connector.tests.unit.journals import (
    ENVIRONMENT,
    HEADER,
    IDENTITY,
    ROW,
    SLOTS,
    THREAD,
    WRITER,
    found,
    journal_in,
    key_of,
    length,
)
from connector.tests.unit.limits import file_size_limit
from kvpool_connector.config import ConfigError
from kvpool_connector.scheduler.secondary.disk import DiskIndex
from kvpool_connector.tiers import journal as journal_module
from kvpool_connector.tiers.journal import FILE, MAX_KEY_BYTES, RECORD_BYTES
from kvpool_connector.tiers.ownership import Ownership
from kvpool_connector.tiers.policy import make_policy
from kvpool_connector.tiers.slots import SlotIndex
from testkit.patience import PATIENCE_S
from testkit.servers import wait_until

# ---- errors


def test_faults_are_counted_for_metrics_once(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    index = DiskIndex(SlotIndex(SLOTS, make_policy("lru")), journal)
    assert not index.take_counts()
    for _ in range(2):
        journal.stored(b"x" * (MAX_KEY_BYTES + 1), 0)
    assert index.take_counts() == {"journal key": 2}
    assert not index.take_counts()
    journal.stored(b"x" * (MAX_KEY_BYTES + 1), 0)
    assert index.take_counts() == {"journal key": 1}
    journal.close()


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ENOSPC from the kernel: counted, said once, nothing raised; afterwards it goes on where it was."""
    journal = journal_in(tmp_path)
    journal.stored(b"a", 0)
    assert journal.flush(5)
    saved, full = os.dup(journal._fd), os.open("/dev/full", os.O_RDWR)
    os.dup2(full, journal._fd)
    with caplog.at_level(logging.WARNING):
        for key in (b"b", b"c", b"d"):
            journal.stored(key, 1)
            assert journal.flush(5)
    os.dup2(saved, journal._fd)
    os.close(saved)
    os.close(full)
    journal.stored(b"e", 2)
    journal.close()
    assert journal.errors == {"ENOSPC": 3}
    assert caplog.text.count("No space left on device; a restart will find fewer blocks") == 1
    assert found(tmp_path) == [(b"a", 0), (b"e", 2)]


def test_a_record_cut_by_a_limit(tmp_path: Path) -> None:
    """Half a record reached the file: the next one takes its place."""
    journal = journal_in(tmp_path)
    journal.stored(b"a", 0)
    assert journal.flush(5)
    with file_size_limit(HEADER + 2 * RECORD_BYTES + 30):
        for slot, key in enumerate((b"b", b"c", b"d"), start=1):
            journal.stored(key, slot)
        assert journal.flush(5)
    assert (tmp_path / FILE).stat().st_size == HEADER + 2 * RECORD_BYTES + 30
    journal.stored(b"e", 4)
    journal.close()
    assert journal.errors == {"short": 1}
    assert length(tmp_path) == 3
    assert found(tmp_path) == [(b"a", 0), (b"b", 1), (b"e", 4)]


def test_the_caller_does_no_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is the journal's thread's, and what comes shortly after each other is one append."""
    writers: list[str] = []
    pwrite = os.pwrite

    def watched(fd: int, data: bytes, offset: int) -> int:
        writers.append(threading.current_thread().name)
        return pwrite(fd, data, offset)

    journal = journal_in(tmp_path)
    monkeypatch.setattr(journal_module, "_GATHER_S", 30)
    monkeypatch.setattr(os, "pwrite", watched)
    journal.stored(b"a", 0)
    wait_until("the thread took it", lambda: journal._queue.qsize() == 0)
    for number in range(100):
        journal.stored(key_of(number), number % SLOTS)
    journal.removed(0)
    journal.clear()
    assert journal.flush(5)
    assert writers == [THREAD]
    journal.close()


def test_a_hanging_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers go on, the queue is bounded, an end does not wait for ever, and the folder stays locked meanwhile."""
    hangs, go, pwrite = threading.Event(), threading.Event(), os.pwrite

    def hang(fd: int, data: bytes, offset: int) -> int:
        hangs.set()
        assert go.wait(PATIENCE_S)
        return pwrite(fd, data, offset)

    journal = journal_in(tmp_path)
    monkeypatch.setattr(journal_module, "MAX_QUEUED", 2)
    monkeypatch.setattr(os, "pwrite", hang)
    journal.stored(b"a", 0)
    assert hangs.wait(PATIENCE_S)
    for slot, key in enumerate((b"b", b"c", b"d", b"e"), start=1):
        journal.stored(key, slot)
    assert journal.errors == {"dropped": 2}
    assert not journal.flush(0.05)
    journal.close(0.05)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(ConfigError, match="in use"):
        journal_in(tmp_path)
    go.set()
    journal.close()
    assert found(tmp_path) == [(b"a", 0), (b"b", 1), (b"c", 2)]


def test_nothing_stays_behind(tmp_path: Path) -> None:
    """Files, threads and lock, however often it is closed; calls after the end are ignored."""
    found(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    threads_before = set(threading.enumerate())  # an earlier test may have left one on a disk that hung
    journal = journal_in(tmp_path)
    with pytest.raises(ConfigError):
        journal_in(tmp_path)
    journal.close()
    journal.close()
    journal.stored(b"a", 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not any(thread.name == THREAD for thread in set(threading.enumerate()) - threads_before)
    assert found(tmp_path) == []


# ---- one owner


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    """Process, host and since when."""
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(SLOTS), str(ROW), IDENTITY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(ConfigError) as refused:
            journal_in(tmp_path)
        os.kill(writer.pid, signal.SIGKILL)
        writer.stdout.read()
    owner = f"(index) is in use by pid {writer.pid} on {socket.gethostname()} since 2"
    assert f"tiers.disk.path: {tmp_path} {owner}" in str(refused.value)


def test_no_file_can_be_made(tmp_path: Path) -> None:
    """A pool that silently does nothing is a fault: this ends the start, and the lock is free."""
    (tmp_path / "index.new").mkdir()
    with pytest.raises(ConfigError, match=r"tiers\.disk\.path: .* cannot be used: Is a directory"):
        journal_in(tmp_path)
    Ownership(tmp_path, "index").release()
