"""The data plane of a rank when something raises, hangs, or ends in the middle."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from connector.tests.unit.rank import Rank, closing, key, name, small
from kvpool_connector.format import HEADER_BYTES
from kvpool_connector.transfer import Tier
from kvpool_connector.worker import mover as mover_module
from testkit.patience import PATIENCE_S, promptly
from testkit.servers import wait_until

LANES = {"kvpool-copy", "kvpool-read", "kvpool-write", "kvpool-disk"}


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Rank]:
    """With all tiers."""
    with closing(Rank({}, tmp_path)) as it:
        yield it


def boom(verb: str) -> None:
    """In place of what a store does first."""
    raise RuntimeError("boom")


def lanes() -> set[str]:
    """Those that run in this process."""
    return {thread.name for thread in threading.enumerate()} & LANES


def test_a_copy_that_raises_fails_the_job_and_ends_it(rank: Rank, caplog: pytest.LogCaptureFixture) -> None:
    """Stores and loads with all their keys; the lane goes on."""
    stored = rank.fill(small(0, 1))
    rank.ended(rank.store([0], [small(0, 1)]))
    rank.device.broken = True
    with caplog.at_level(logging.ERROR):
        _, failed, reports = rank.ended(store := rank.store([1, 2], [small(2, 3), small(4, 5)]))
        assert (failed, reports.failed) == (set(), {100 + store: {0, 1}})
        _, failed, reports = rank.ended(load := rank.load([0], [small(6, 7)]))
        assert (failed, reports.failed) == ({f"r{load}"}, {100 + load: {0}})
    assert "no copy" in caplog.text
    rank.device.broken = False
    assert not rank.ended(rank.load([0], [small(6, 7)]))[1]
    assert rank.content(small(6, 7)) == stored


def test_a_comparison_that_raises_fails_the_job_and_ends_it(rank: Rank) -> None:
    """It says nothing about a difference."""
    rank.ended(rank.store([0], [small(0, 1)]))
    rank.device.broken = True
    _, _, reports = rank.ended(job := rank.store([0], [small(0, 1)], compared=[0]))
    assert (reports.failed, reports.differed) == ({100 + job: {0}}, {})


def test_a_reader_that_raises_fails_the_job_and_ends_it(rank: Rank) -> None:
    """A fault of ours in a client."""
    rank.reader.before = boom
    _, failed, reports = rank.ended(job := rank.load([0, 1], [small(0, 1), small(2, 3)], remote=[0]))
    assert (failed, reports.failed) == ({f"r{job}"}, {100 + job: {0, 1}})
    rank.mover.wait({job})


def test_a_slab_that_raises_fails_the_job_and_ends_it(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours in the disk tier. The stages after it do not run: the job is over."""
    assert rank.slab is not None
    monkeypatch.setattr(rank.slab, "read_into", lambda slots, rows, deadline: boom(""))
    job = rank.load([0, 1], [small(0, 1), small(2, 3)], disk=[0], remote=[1])
    done, failed, reports = rank.ended(job)
    assert (len(done), failed, reports.failed) == (1, {f"r{job}"}, {100 + job: {0, 1}})
    assert rank.reader.called("get") == []


def test_a_probe_that_raises_is_lost_and_nothing_else(rank: Rank, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it."""
    rank.stored_below(Tier.REMOTE, [0], [small(0, 1)])
    rank.reader.before = boom
    rank.probe(Tier.REMOTE, 0)
    rank.ended(rank.load([0], [small(2, 3)], remote=[0]))
    wait_until("the probe failed", lambda: "a task of kvpool-read failed" in caplog.text)  # it may come after the load
    rank.reader.before = lambda verb: None
    assert not rank.ended(rank.load([0], [small(2, 3)], remote=[0]))[1]


def test_close_with_everything_in_flight(tmp_path: Path) -> None:
    """Jobs of all stages end; spills are finished or dropped, and each is reported; no thread and no file stays."""
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    rank = Rank({}, tmp_path)
    chunks = [small(2 * n, 2 * n + 1) for n in range(6)]
    below = rank.stored_below(Tier.DISK, [0, 1], chunks[:2]) + rank.stored_below(Tier.REMOTE, [2, 3], chunks[2:4])
    started, go = threading.Event(), threading.Event()

    def writing(verb: str) -> None:
        started.set()
        go.wait(10)

    rank.reader.before, rank.writer.before = lambda verb: go.wait(10), writing
    stored = [rank.fill(chunk) for chunk in chunks[4:6]]
    jobs = [rank.store([4, 5], chunks[4:6]), rank.load(range(4), chunks[:4], disk=[0, 1], remote=[2, 3])]
    rank.mover.wait({jobs[0]})
    tickets = [rank.spill(Tier.REMOTE, 4), rank.spill(Tier.DISK, 5), rank.spill(Tier.REMOTE, 5)]
    rank.probe(Tier.DISK, 0)
    rank.probe(Tier.REMOTE, 2)
    assert started.wait(PATIENCE_S)
    threading.Timer(0.05, go.set).start()
    rank.mover.close()
    done, _, reports = rank.ended(*jobs)
    assert (len(done), reports.failed) == (2, {})
    assert [rank.content(chunk) for chunk in chunks[:4]] == below
    assert reports.spilled.keys() == set(tickets)
    assert reports.spilled[tickets[0]] == [set()]
    assert rank.data[name(key(4, 1))][HEADER_BYTES:] == stored[0]
    assert (name(key(5, 1)) in rank.data) is (reports.spilled[tickets[2]] == [set()])
    assert rank.mover.idle
    assert not lanes()
    assert rank.reader.closed
    assert rank.writer.closed
    assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208


def test_close_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A store that keeps no deadline: its lane is given up, and the arena's memory stays registered."""
    monkeypatch.setattr(mover_module, "CLOSE_S", 0.1)
    rank = Rank({}, tmp_path)
    started, go, closed = threading.Event(), threading.Event(), list[bool]()
    monkeypatch.setattr(rank.device, "close", lambda: closed.append(True))

    def hang(verb: str) -> None:
        started.set()
        go.wait(10)

    rank.reader.before = hang
    rank.load([1], [small(0, 1)], remote=[0])
    assert started.wait(PATIENCE_S)
    with promptly(1):
        rank.mover.close()
    assert "a lane did not end" in caplog.text
    assert not closed
    go.set()
    rank.mover._secondary[Tier.REMOTE].read_lane._thread.join(PATIENCE_S)
    assert not lanes()
