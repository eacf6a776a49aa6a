"""The disk slab: real files, deadlines, torn writes, real killed writers."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.tests.unit.slabs import (
    ENVIRONMENT,
    IDENTITY,
    PAGES,
    ROW,
    SLOTS,
    filled,
    name_of,
    slab_in,
    soon,
    verdict,
    write,
)
from kvpool_connector.format import HEADER_BYTES, Verdict, check
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers import slab as slab_module
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import PAGE, Slab, runs

# ---- reads and writes


def test_round_trip_in_any_order(slab: Slab) -> None:
    """Neighbours and single slots, written in one order and read in another."""
    order = [3, 4, 5, 0, 7, 6, 1, 2]
    assert write(slab, order, [100 + slot for slot in order]) == [Outcome.HIT] * SLOTS
    arena = Arena(SLOTS, ROW)
    assert slab.read_into(range(SLOTS), [arena.row(slot) for slot in range(SLOTS)], soon()) == [Outcome.HIT] * SLOTS
    for slot in range(SLOTS):
        assert check(arena.row(slot), IDENTITY, name_of(100 + slot)) is Verdict.INTACT
    assert slab.direct, "the temporary folder's file system has no direct I/O"
    assert not slab.errors


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(1, 4))
def test_runs_cover_all_positions_in_order(slots: list[int], longest: int) -> None:
    """Each run neighbours only, none too long, none that could have been one with the run before it."""
    found = list(runs(slots, longest))
    assert [position for start, stop in found for position in range(start, stop)] == list(range(len(slots)))
    for start, stop in found:
        assert stop - start <= longest
        assert slots[start:stop] == list(range(slots[start], slots[start] + stop - start))
    for (before, border), _ in itertools.pairwise(found):
        assert border - before == longest or slots[border] != slots[border - 1] + 1


def test_no_slots(slab: Slab) -> None:
    """A batch may be empty."""
    assert slab.read_into([], [], soon()) == []


def test_short_calls_are_completed(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may move less than asked for, even part of a page. A stand-in, since it rarely does so on demand."""

    def cut(call: object) -> object:
        def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            count: int = call(fd, [buffers[0][: 2 * PAGE]], offset)  # type: ignore[operator]
            return min(count, PAGE + 100)

        return short

    monkeypatch.setattr(os, "pwritev", cut(os.pwritev))
    monkeypatch.setattr(os, "preadv", cut(os.preadv))
    assert write(slab, [2, 3, 4], [2, 3, 4]) == [Outcome.HIT] * 3
    for number in (2, 3, 4):
        assert verdict(slab, number, number) is Verdict.INTACT


def test_late_calls_are_not_begun(slab: Slab) -> None:
    """The rows stay as they are."""
    assert write(slab, [0], [1]) == [Outcome.HIT]
    arena = filled([7])
    assert slab.read_into([0], [arena.row(0)], time.monotonic()) == [Outcome.TIMEOUT]
    assert check(arena.row(0), IDENTITY, name_of(7)) is Verdict.INTACT


def test_a_deadline_cuts_the_end(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at between calls: what was read before it stays a hit, and the first of the batch comes first."""
    assert write(slab, [5, 1, 3], [5, 1, 3]) == [Outcome.HIT] * 3
    clock = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(slab_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    arena = Arena(3, ROW)
    outcomes = slab.read_into([5, 1, 3], [arena.row(row) for row in range(3)], 1.5)
    assert outcomes == [Outcome.HIT, Outcome.HIT, Outcome.TIMEOUT]
    assert check(arena.row(0), IDENTITY, name_of(5)) is Verdict.INTACT
    assert check(arena.row(1), IDENTITY, name_of(1)) is Verdict.INTACT


# ---- torn writes


@pytest.mark.parametrize("whole", range(1, PAGES))
@pytest.mark.parametrize("from_the_end", [False, True])
def test_a_torn_write_is_never_served(slab: Slab, tmp_path: Path, whole: int, from_the_end: bool) -> None:
    """Some pages of the new part over the old one, in either order: no name finds an intact part."""
    assert write(slab, [2], [1]) == [Outcome.HIT]
    new = bytes(filled([2]).row(0))
    kept = slice((PAGES - whole) * PAGE, ROW) if from_the_end else slice(0, whole * PAGE)
    with (tmp_path / "rank-0.slab").open("r+b") as file:
        file.seek(2 * ROW + kept.start)
        file.write(new[kept])
    assert verdict(slab, 2, 1) is (Verdict.DAMAGED if from_the_end else Verdict.OTHER_NAME)
    assert verdict(slab, 2, 2) is (Verdict.OTHER_NAME if from_the_end else Verdict.DAMAGED)


def test_half_a_part_in_an_empty_slot(slab: Slab, tmp_path: Path) -> None:
    """With its header it is damaged, without it is no part."""
    part = bytes(filled([2]).row(0))
    with (tmp_path / "rank-0.slab").open("r+b") as file:
        file.write(part[: ROW // 2])
        file.seek(ROW + ROW // 2)
        file.write(part[ROW // 2 :])
    assert verdict(slab, 0, 2) is Verdict.DAMAGED
    assert verdict(slab, 1, 2) is Verdict.NO_PART


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from kvpool_connector.format import HEADER_BYTES, part_name, seal
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import Slab
folder, identity, slots, row, batch = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
slab, arena, number = Slab(folder, 0, slots, row, identity), Arena(batch, row), 0
while True:
    for position in range(batch):
        name = part_name(identity, 0, (number + position).to_bytes(8, "little"))
        arena.payload(position, row - HEADER_BYTES)[:] = (number + position) % 251
        seal(arena.row(position), identity, name)
    first = number % slots
    slab.write_from(range(first, first + batch), [arena.row(p) for p in range(batch)], time.monotonic() + 30)
    number += batch
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [8, 40, 56])
def test_a_killed_writer_leaves_misses_at_worst(tmp_path: Path, after: int) -> None:
    """kill -9 while it writes: the lock is free, and every slot is a part of the slot's own or refused."""
    slots, row, batch = 16, 1 << 20, 8
    command = [sys.executable, "-c", WRITER, str(tmp_path), IDENTITY, str(slots), str(row), str(batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as writer:
        assert writer.stdout is not None
        written = next(int(line) for line in writer.stdout if int(line) >= after)
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
    limit = max([written, *map(int, rest)]) + batch
    slab, arena = slab_in(tmp_path, slots, row), Arena(slots, row)
    rows = [arena.row(slot) for slot in range(slots)]
    assert slab.read_into(range(slots), rows, soon()) == [Outcome.HIT] * slots
    intact = 0
    for slot in range(slots):
        verdicts = {number: check(rows[slot], IDENTITY, name_of(number)) for number in range(slot, limit, slots)}
        for number, found in verdicts.items():
            if found is Verdict.INTACT:
                intact += 1
                assert np.all(arena.payload(slot, row - HEADER_BYTES) == number % 251)
    assert batch <= intact <= slots  # what was whole before the last write still is
    slab.close()
