"""Calls to the slab that are given up, where no file system can be made to hang: the slab's own calls are stand-ins that wait
until a test says so. A real one is in test_hanging_disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from connector.tests.unit.slabs import ROW, SLOTS, filled, soon, write
from kvpool_connector.stores import Outcome
from kvpool_connector.stores.caller import rows_of_call
from kvpool_connector.tiers import slab_calls
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import Slab
from kvpool_connector.tiers.slab_calls import SlabCalls
from testkit.patience import PATIENCE_S, promptly
from testkit.servers import wait_until

HIT, FAILED, TIMEOUT, STALLED = Outcome.HIT, Outcome.FAILED, Outcome.TIMEOUT, Outcome.STALLED
MOST_LENT = 2


class Rig:
    """A slab of eight parts, and what is told about it."""

    def __init__(self, slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
        assert write(slab, range(SLOTS), range(SLOTS)) == [HIT] * SLOTS
        self.slab = slab
        self.silences: list[bool] = []
        self.calls = SlabCalls(slab, MOST_LENT, self.silences.append)
        self.go = threading.Event()
        self.moved: list[int] = []
        """Rows of each call of the system."""
        self.hangs_at = -1
        """Which of them does not return before `go`."""
        monkeypatch.setattr(os, "preadv", self._waiting(os.preadv))
        monkeypatch.setattr(os, "pwritev", self._waiting(os.pwritev))

    def _waiting(self, call: Callable[..., int]) -> Callable[..., int]:
        def waits(file: int, rows: Sequence[memoryview], offset: int) -> int:
            self.moved.append(len(rows))
            if len(self.moved) - 1 == self.hangs_at:
                self.go.wait(PATIENCE_S)
            return call(file, rows, offset)

        return waits

    def read(self, slots: Sequence[int], deadline: float) -> list[Outcome]:
        """Into an arena of its own."""
        arena = Arena(len(slots), ROW)
        return self.calls.read_into(slots, [arena.row(row) for row in range(len(slots))], deadline)

    def write(self, slots: Sequence[int]) -> list[Outcome]:
        """Parts of these numbers."""
        arena = filled(slots)
        return self.calls.write_from(slots, [arena.row(row) for row in range(len(slots))])

    def returns(self) -> None:
        """What hangs goes on, to its end."""
        self.go.set()
        wait_until("it returned", lambda: not self.calls._caller.busy)


@pytest.fixture
def rig(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Closed at the end."""
    it = Rig(slab, monkeypatch)
    yield it
    it.returns()
    assert it.calls.close(soon())


def test_a_read_of_several_calls(rig: Rig) -> None:
    """Each fills no more rows than may be lent."""
    assert rig.read(range(5), soon()) == [HIT] * 5
    assert rig.moved == [2, 2, 1]
    assert rig.calls.lent is None
    assert rig.silences == []


@pytest.mark.parametrize(("seconds", "outcome"), [(1.0, TIMEOUT), (60.0, STALLED)])
def test_a_read_is_given_up(rig: Rig, seconds: float, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its deadline, or when no disk takes so long. The rows of the call that hangs are lent, and no others."""
    monkeypatch.setattr(slab_calls, "READ_S", 1.5)
    rig.hangs_at = 1
    with promptly(1.5 + 0.3):
        assert rig.read(range(6), soon() - 30 + seconds) == [HIT] * 2 + [outcome] * 4
    loan = rig.calls.lent
    assert loan is not None
    assert loan.positions == range(2, 4)
    assert rig.silences == [True]
    with promptly(0.3):
        assert rig.read(range(2), soon()) == [STALLED] * 2
        assert rig.write(range(2)) == [STALLED] * 2
    assert rig.calls.lent is None
    freed = threading.Event()
    loan.then(freed.set)
    assert not freed.is_set()
    rig.returns()
    assert freed.is_set()
    assert rig.silences == [True, False]
    assert rig.read(range(6), soon()) == [HIT] * 6


def test_a_write_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lends nothing: what it reads may change."""
    monkeypatch.setattr(slab_calls, "WRITE_S", 1.0)
    rig.hangs_at = 0
    with promptly(1.0 + 0.3):
        assert rig.write(range(3)) == [STALLED] * 3
    assert rig.calls.lent is None
    assert rig.silences == [True]
    rig.returns()
    assert rig.write(range(3)) == [HIT] * 3


def test_a_deadline_that_has_passed_costs_no_call(rig: Rig) -> None:
    assert rig.read(range(3), soon() - 60) == [TIMEOUT] * 3
    assert rig.moved == []


def test_errors_are_told_once_and_not_while_a_call_hangs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab_calls, "READ_S", 0.2)
    rig.slab.errors["EIO"] += 2
    rig.hangs_at = 0
    assert rig.read(range(2), soon()) == [STALLED] * 2
    assert not rig.calls.take_errors()
    rig.returns()
    assert rig.calls.take_errors() == {"EIO": 2}
    assert not rig.calls.take_errors()


def test_the_end_is_bounded(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab_calls, "READ_S", 0.2)
    rig = Rig(slab, monkeypatch)
    rig.hangs_at = 0
    assert rig.read(range(2), soon()) == [STALLED] * 2
    with promptly(0.3):
        assert not rig.calls.close(soon())
    rig.returns()


@pytest.mark.parametrize(("row_bytes", "rows", "expected"), [(1 << 20, 1000, 16), (1 << 20, 40, 5), (64 << 20, 9, 1)])
def test_rows_that_a_call_fills(row_bytes: int, rows: int, expected: int) -> None:
    assert rows_of_call(row_bytes, rows) == expected
