"""The journal of the disk tier: what a restart finds, after whatever happened before."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector.tests.unit.limits import file_size_limit
from kvpool_connector.config import ConfigError
from kvpool_connector.tiers import journal as journal_module
from kvpool_connector.tiers.journal import FILE, MAX_KEY_BYTES, RECORD_BYTES, Journal
from kvpool_connector.tiers.ownership import Ownership
from testkit.servers import wait_until

IDENTITY = "00112233445566778899aabbccddeeff"
SLOTS = 8
ROW = 12288
HEADER = 40
THREAD = "kvpool-journal"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def journal_in(folder: Path, slots: int = SLOTS, row_bytes: int = ROW, identity: str = IDENTITY) -> Journal:
    """With what most tests use."""
    return Journal(folder, slots, row_bytes, identity)


def key_of(number: int) -> bytes:
    """As long as vLLM's SHA-256 with a group index behind it."""
    return number.to_bytes(36, "big")


def write(folder: Path, *stored: tuple[bytes, int]) -> None:
    """One process's life."""
    journal = journal_in(folder)
    for key, slot in stored:
        journal.stored(key, slot)
    journal.close()


def found(folder: Path, slots: int = SLOTS) -> list[tuple[bytes, int]]:
    """What the next process finds."""
    journal = journal_in(folder, slots)
    recovered = journal.recovered()
    journal.close()
    return recovered


def length(folder: Path) -> int:
    """Records in the file."""
    size = (folder / FILE).stat().st_size - HEADER
    assert size % RECORD_BYTES == 0
    return size // RECORD_BYTES


# ---- what is found


def test_restart(tmp_path: Path) -> None:
    """In the order of last storing; the last word counts for a slot and for a key."""
    journal = journal_in(tmp_path)
    assert journal.recovered() == []
    for key, slot in ((b"a", 0), (b"b", 1), (b"c", 2), (b"a", 0), (b"d", 1), (b"c", 3), (b"e", 4)):
        journal.stored(key, slot)
    journal.removed(4)
    journal.removed(5)
    journal.close()
    assert found(tmp_path) == [(b"a", 0), (b"d", 1), (b"c", 3)]
    assert found(tmp_path) == [(b"a", 0), (b"d", 1), (b"c", 3)]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_clear(tmp_path: Path) -> None:
    """Only what was stored after it."""
    journal = journal_in(tmp_path)
    journal.stored(b"a", 0)
    journal.clear()
    journal.stored(b"b", 1)
    journal.close()
    assert found(tmp_path) == [(b"b", 1)]


def test_recovered_is_handed_over(tmp_path: Path) -> None:
    """The scheduler's index holds it from then on; twice would be memory for nothing."""
    write(tmp_path, (b"a", 0))
    journal = journal_in(tmp_path)
    assert journal.recovered() == [(b"a", 0)]
    assert journal.recovered() == []
    journal.close()


def test_keys_of_all_lengths(tmp_path: Path) -> None:
    """Up to the longest; a longer one is counted, said once, and nothing else happens."""
    keys = [bytes(size) for size in range(MAX_KEY_BYTES + 1)]  # zeros, as the padding
    journal = journal_in(tmp_path, slots=100)
    for slot, key in enumerate(keys):
        journal.stored(key, slot)
    journal.stored(bytes(MAX_KEY_BYTES + 1), 70)
    journal.close()
    assert journal.errors == {"key": 1}
    assert found(tmp_path, 100) == [(key, slot) for slot, key in enumerate(keys)]


def test_a_slot_out_of_range_is_not_found(tmp_path: Path) -> None:
    """Whatever the file says: a slot beyond the slab would be a write beyond it."""
    write(tmp_path, (b"a", SLOTS), (b"b", SLOTS - 1))
    assert found(tmp_path) == [(b"b", SLOTS - 1)]


OPERATIONS = st.one_of(
    st.tuples(st.just("stored"), st.integers(0, 6), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("removed"), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("clear")),
    st.tuples(st.just("flush")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("tear"), st.integers(1, RECORD_BYTES - 1)),
)


@pytest.mark.parametrize("rewrites", ["seldom", "always"])
@given(st.lists(OPERATIONS, max_size=40))
@settings(max_examples=150)
def test_any_history_is_found_as_a_dict_has_it(rewrites: str, operations: list[tuple[Any, ...]]) -> None:
    """With ends, starts and half-written records in between; the model is a plain dict in order of storing."""
    model: dict[bytes, int] = {}
    folder = Path(tempfile.mkdtemp())
    patch = pytest.MonkeyPatch()
    if rewrites == "always":
        patch.setattr(Journal, "_worth_rewriting", lambda _: 0)
    journal = journal_in(folder)
    try:
        for name, *rest in [*operations, ("reopen",)]:
            if name == "stored":
                key, slot = key_of(rest[0]), rest[1]
                model = {k: s for k, s in model.items() if k != key and s != slot} | {key: slot}
                journal.stored(key, slot)
            elif name == "removed":
                model = {k: s for k, s in model.items() if s != rest[0]}
                journal.removed(rest[0])
            elif name == "clear":
                model = {}
                journal.clear()
            elif name == "flush":  # and let it rewrite
                assert journal.flush(5)
            else:
                journal.close()
                if name == "tear":
                    with (folder / FILE).open("ab") as file:
                        file.write(b"\1" * rest[0])
                journal = journal_in(folder)
                assert journal.recovered() == list(model.items())
        assert not journal.errors
    finally:
        journal.close()
        patch.undo()
        shutil.rmtree(folder)


# ---- torn and foreign files


@pytest.mark.parametrize("kept", range(RECORD_BYTES))
def test_a_torn_tail(tmp_path: Path, kept: int) -> None:
    """Cut at each byte of the last record: the ones before it are found, and new ones go behind them."""
    write(tmp_path, (b"a", 0), (b"b", 1), (b"c", 2))
    os.truncate(tmp_path / FILE, HEADER + 2 * RECORD_BYTES + kept)
    write(tmp_path, (b"d", 3))
    assert length(tmp_path) == 3
    assert found(tmp_path) == [(b"a", 0), (b"b", 1), (b"d", 3)]


@pytest.mark.parametrize("offset", range(RECORD_BYTES))
def test_a_damaged_record_ends_the_file(tmp_path: Path, offset: int) -> None:
    """Each byte is covered by the checksum. What is behind it does not come back when the file grows again."""
    write(tmp_path, (b"a", 0), (b"b", 1), (b"c", 2))
    content = bytearray((tmp_path / FILE).read_bytes())
    content[HEADER + RECORD_BYTES + offset] ^= 0x10
    (tmp_path / FILE).write_bytes(content)
    write(tmp_path, (b"d", 3))
    assert found(tmp_path) == [(b"a", 0), (b"d", 3)]


def test_a_tail_of_zeros(tmp_path: Path) -> None:
    """What some file systems leave after a loss of power."""
    write(tmp_path, (b"a", 0))
    with (tmp_path / FILE).open("ab") as file:
        file.write(bytes(3 * RECORD_BYTES))
    assert found(tmp_path) == [(b"a", 0)]


@pytest.mark.parametrize("change", [{"identity": "f" * 32}, {"slots": SLOTS + 1}, {"row_bytes": 2 * ROW}])
def test_made_for_something_else(tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object]) -> None:
    """Started anew, which is said once, and the same the other way round."""
    write(tmp_path, (b"a", 0))
    with caplog.at_level(logging.INFO):
        journal = journal_in(tmp_path, **change)  # type: ignore[arg-type]
    assert journal.recovered() == []
    assert caplog.text.count("started anew") == 1
    journal.close()
    assert found(tmp_path) == []


@pytest.mark.parametrize("offset", range(HEADER))
def test_a_damaged_header_starts_anew(tmp_path: Path, offset: int) -> None:
    """Each byte of it counts, the version's too; and the new file is used."""
    write(tmp_path, (b"a", 0))
    content = bytearray((tmp_path / FILE).read_bytes())
    content[offset] ^= 1
    (tmp_path / FILE).write_bytes(content)
    assert found(tmp_path) == []
    write(tmp_path, (b"b", 1))
    assert found(tmp_path) == [(b"b", 1)]


@pytest.mark.parametrize("size", range(HEADER))
def test_a_header_cut(tmp_path: Path, size: int) -> None:
    """Down to an empty file."""
    write(tmp_path, (b"a", 0))
    os.truncate(tmp_path / FILE, size)
    assert found(tmp_path) == []


WRITER = """
import sys
from pathlib import Path
from kvpool_connector.tiers.journal import Journal
journal, number = Journal(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]), 0
while True:
    for _ in range(50):
        journal.stored(number.to_bytes(36, "big"), number % int(sys.argv[2]))
        number += 1
    journal.flush(30)
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [50, 1000, 5000])
def test_a_killed_writer(tmp_path: Path, after: int) -> None:
    """kill -9 while it appends or rewrites: the state after one of the records, no earlier than what was flushed."""
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(SLOTS), str(ROW), IDENTITY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as writer:
        assert writer.stdout is not None
        flushed = next(int(line) for line in writer.stdout if int(line) >= after)
        os.kill(writer.pid, signal.SIGKILL)
        flushed = max([flushed, *map(int, writer.stdout.read().split())])
    recovered = found(tmp_path)
    count = int.from_bytes(recovered[-1][0], "big") + 1
    assert flushed <= count <= flushed + 50
    assert recovered == [(key_of(number), number % SLOTS) for number in range(count - SLOTS, count)]


# ---- rewrites


def test_the_file_stays_short(tmp_path: Path) -> None:
    """It is rewritten while it is in use, from records of the past to the ones that count."""
    journal = journal_in(tmp_path, slots=4)
    files = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5000):
        journal.stored(key_of(number), number % 4)
        if number % 700 == 0:
            assert journal.flush(10)
    assert journal.flush(10)
    wait_until("it is rewritten", lambda: length(tmp_path) < 1100)
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    journal.stored(key_of(5000), 0)
    journal.close()
    expected = [(key_of(number), number % 4) for number in range(4997, 5001)]
    assert found(tmp_path, 4) == expected
    assert length(tmp_path) == 4, "rewritten at the start too"
    assert found(tmp_path, 4) == expected
    assert not journal.errors


def test_an_end_does_not_wait_for_a_rewrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up and leaves nothing; what was told meanwhile is in the old file."""
    paused, calls = threading.Event(), iter(["reads", "writes"])

    def pause(records: object) -> Iterator[object]:
        if next(calls) == "writes":
            paused.set()
            wait_until("the end", lambda: journal._ending)
        yield from in_bursts(journal, records)  # type: ignore[arg-type]

    in_bursts = Journal._in_bursts
    monkeypatch.setattr(Journal, "_worth_rewriting", lambda _: 0)
    monkeypatch.setattr(journal_module, "_BURST", 1)
    journal = journal_in(tmp_path)
    monkeypatch.setattr(journal, "_in_bursts", pause)
    for _ in range(3):
        journal.stored(b"a", 0)
    assert paused.wait(5)
    journal.stored(b"b", 1)
    journal.close()
    monkeypatch.undo()
    assert not (tmp_path / "index.new").exists()
    assert length(tmp_path) == 4
    assert found(tmp_path) == [(b"a", 0), (b"b", 1)]


def test_what_a_crashed_rewrite_left(tmp_path: Path) -> None:
    """Is no harm."""
    write(tmp_path, (b"a", 0), (b"a", 0), (b"a", 0))
    (tmp_path / "index.new").write_bytes(b"x" * 10_000)
    assert found(tmp_path) == [(b"a", 0)]
    assert length(tmp_path) == 1
    assert not (tmp_path / "index.new").exists()


@pytest.mark.parametrize("at", ["start", "later"])
def test_no_room_for_a_rewrite(tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file goes on, and the rewrite is not tried after every record."""
    write(tmp_path, *[(b"a", 0), (b"b", 1)] * 4)
    (tmp_path / "index.new").mkdir()  # a file cannot be made there
    if at == "later":
        (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[: HEADER + 2 * RECORD_BYTES])
        monkeypatch.setattr(Journal, "_worth_rewriting", lambda _: HEADER + 3 * RECORD_BYTES)
    journal = journal_in(tmp_path)
    for number in range(2, 5):
        journal.stored(key_of(number), number)
        assert journal.flush(5)
    journal.close()
    assert journal.errors == {"EISDIR": 1}
    (tmp_path / "index.new").rmdir()
    assert found(tmp_path) == [(b"a", 0), (b"b", 1), *((key_of(number), number) for number in range(2, 5))]


# ---- errors


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
        assert go.wait(30)
        return pwrite(fd, data, offset)

    journal = journal_in(tmp_path)
    monkeypatch.setattr(journal_module, "MAX_QUEUED", 2)
    monkeypatch.setattr(os, "pwrite", hang)
    journal.stored(b"a", 0)
    assert hangs.wait(5)
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
    journal = journal_in(tmp_path)
    with pytest.raises(ConfigError):
        journal_in(tmp_path)
    journal.close()
    journal.close()
    journal.stored(b"a", 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not any(thread.name == THREAD for thread in threading.enumerate())
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
