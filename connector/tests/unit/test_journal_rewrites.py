"""The journal stays short: rewrites, crashed ones, and no room for one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from connector.tests.unit.journals import HEADER, found, journal_in, key_of, length, write
from kvpool_connector.tiers import journal as journal_module
from kvpool_connector.tiers.journal import FILE, RECORD_BYTES, Journal
from testkit.patience import PATIENCE_S
from testkit.servers import wait_until


def test_the_file_stays_short(tmp_path: Path) -> None:
    """It is rewritten while it is in use, from records of the past to the ones that count."""
    journal = journal_in(tmp_path, slots=4)
    assert journal.flush(10)  # its thread has begun, and has no other file open
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
    assert paused.wait(PATIENCE_S)
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
