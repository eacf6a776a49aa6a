"""The journal of the disk tier: what a restart finds, after whatever happened before."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector.tests.unit.journals import (
    ENVIRONMENT,
    HEADER,
    IDENTITY,
    ROW,
    SLOTS,
    WRITER,
    found,
    journal_in,
    key_of,
    length,
    write,
)
from kvpool_connector.tiers.journal import FILE, MAX_KEY_BYTES, RECORD_BYTES, Journal

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
