"""The data plane of a rank over numpy arrays: bytes, failures and their order, end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from connector.tests.unit.fakes import FakeStore
from kvpool_connector.format import HEADER_BYTES, part_name
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers.arena import Arena, row_bytes_for
from kvpool_connector.transfer import Kind, Reports, Transfer
from kvpool_connector.worker import putter
from kvpool_connector.worker.device.base import Block, Row
from kvpool_connector.worker.device.cpu import CpuDevice
from kvpool_connector.worker.mover import Done, Mover, Remote
from testkit.servers import wait_until

IDENTITY = "00112233445566778899aabbccddeeff"
BLOCKS, SLOTS = 16, 12
GROUPS: list[list[tuple[int, int]]] = [[(1000, 1000), (3000, 2960)], [(512, 512)], [(128, 100)]]
"""Per group, its layers: bytes from block to block, and bytes that count."""
KEYS = [bytes([number]) * 12 for number in range(SLOTS)]
PAD = 0x77


def name(key: bytes) -> bytes:
    """Of this rank's part."""
    return part_name(IDENTITY, 0, key)


class BrokenDevice(CpuDevice):
    """Copies until told not to."""

    broken = False

    def copy_out(self, blocks: Sequence[Block], rows: Sequence[Row], fence: object) -> None:
        if self.broken:
            raise RuntimeError("no copy")
        super().copy_out(blocks, rows, fence)

    def copy_in(self, rows: Sequence[Row], blocks: Sequence[Block], fence: object) -> None:
        if self.broken:
            raise RuntimeError("no copy")
        super().copy_in(rows, blocks, fence)


class Rig:
    """A rank with small KV memory."""

    def __init__(self, data: dict[bytes, bytes] | None = None, *, fetch_s: float = 5, put_s: float = 5) -> None:
        self.memory = [[np.full((BLOCKS, stride), PAD, np.uint8) for stride, _ in group] for group in GROUPS]
        pages = [
            [(view, size) for view, (_, size) in zip(views, group, strict=True)]
            for views, group in zip(self.memory, GROUPS, strict=True)
        ]
        self.device = BrokenDevice(pages)
        self.arena = Arena(SLOTS, row_bytes_for(max(self.device.payload_bytes)))
        self.data = data
        self.reader, self.writer = FakeStore(data or {}), FakeStore(data or {})
        if data is not None:
            self.reader.data = self.writer.data = data
        remote = None if data is None else Remote(self.reader, self.writer, fetch_s, put_s)
        self.mover = Mover(device=self.device, arena=self.arena, identity=IDENTITY, name=name, remote=remote)
        self.source = np.random.default_rng(5)
        self._job = 0

    def fill(self, block: Block) -> bytes:
        """New content for a block."""
        group, number = block
        for view, (_, size) in zip(self.memory[group], GROUPS[group], strict=True):
            view[number, :size] = self.source.integers(0, 256, size, np.uint8)
        return self.content(block)

    def content(self, block: Block) -> bytes:
        """The bytes of a block that count."""
        group, number = block
        return b"".join(
            view[number, :size].tobytes() for view, (_, size) in zip(self.memory[group], GROUPS[group], strict=True)
        )

    def store(self, numbers: Sequence[int], blocks: Sequence[Block], *, put: bool | None = None) -> int:
        """Key and slot of the same number. Returns the job."""
        self._job += 1
        put = self.data is not None if put is None else put
        keys = tuple(KEYS[n] for n in numbers)
        self.mover.store(self._job, Transfer(Kind.STORE, 100 + self._job, "w", keys, tuple(numbers), put=put), blocks)
        return self._job

    def load(self, numbers: Sequence[int], blocks: Sequence[Block], fetch: Sequence[int] = ()) -> int:
        """Key and slot of the same number; ``fetch`` names those that are not in memory. Returns the job."""
        self._job += 1
        keys = tuple(KEYS[n] for n in numbers)
        transfer = Transfer(
            Kind.LOAD, 100 + self._job, f"r{self._job}", keys, tuple(numbers), tuple(n in fetch for n in numbers)
        )
        self.mover.load(self._job, transfer, blocks)
        return self._job

    def ended(self, *jobs: int) -> tuple[list[Done], set[str], Reports]:
        """The polls until these jobs were reported, and all that came with them."""
        done: list[Done] = []
        failed: set[str] = set()
        reports = Reports()

        def all_there() -> bool:
            nonlocal reports
            news = self.mover.poll()
            done.extend(news)
            failed.update(self.mover.take_failed_requests())
            reports = reports.merge(self.mover.take_reports())
            return set(jobs) <= {one.job_id for one in done}

        wait_until(f"jobs {jobs} end", all_there)
        return done, failed, reports

    def settle(self) -> Reports:
        """Wait for puts, too."""
        wait_until("the mover is idle", lambda: self.mover.idle)
        self.mover.poll()
        return self.mover.take_reports()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """With a remote store."""
    rig = Rig({})
    yield rig
    rig.mover.close()


@pytest.fixture
def alone() -> Iterator[Rig]:
    """Without one."""
    rig = Rig()
    yield rig
    rig.mover.close()


MIXED: list[Block] = [(0, 3), (0, 4), (1, 3), (2, 9), (1, 0), (0, 15)]
OTHERS: list[Block] = [(0, 7), (0, 0), (1, 8), (2, 1), (1, 5), (0, 2)]


def test_memory_round_trip(alone: Rig) -> None:
    """Groups of different sizes; into other blocks; nothing beside the blocks is touched."""
    stored = [alone.fill(block) for block in MIXED]
    done, failed, reports = alone.ended(alone.store(range(6), MIXED))
    assert [(one.job_id, one.nbytes) for one in done] == [(1, sum(map(len, stored)))]
    assert (failed, reports) == (set(), Reports())
    before = [[view.copy() for view in group] for group in alone.memory]
    alone.ended(alone.load(range(6), OTHERS))
    assert [alone.content(block) for block in OTHERS] == stored
    for group, views in enumerate(alone.memory):
        touched = {block for its_group, block in OTHERS if its_group == group}
        for view, was, (_, size) in zip(views, before[group], GROUPS[group], strict=True):
            assert np.all(view[:, size:] == PAD)
            for block in set(range(BLOCKS)) - touched:
                assert np.array_equal(view[block], was[block])


def test_remote_round_trip(rig: Rig) -> None:
    """Through the store, into another engine's empty memory."""
    stored = [rig.fill(block) for block in MIXED]
    _, _, reports = rig.ended(rig.store(range(6), MIXED))
    puts = reports.merge(rig.settle()).puts
    assert puts == {101: [set()]}
    assert rig.data is not None
    assert {key: len(part) - HEADER_BYTES for key, part in rig.data.items()} == {
        name(KEYS[n]): len(value) for n, value in enumerate(stored)
    }
    other = Rig(rig.data)
    _, failed, reports = other.ended(other.load(range(6), OTHERS, fetch=range(6)))
    assert (failed, reports) == (set(), Reports())
    assert [other.content(block) for block in OTHERS] == stored
    other.mover.close()


def test_memory_and_remote_in_one_load(rig: Rig) -> None:
    """Some rows are there, some are fetched."""
    stored = [rig.fill(block) for block in MIXED]
    rig.ended(rig.store(range(6), MIXED))
    rig.settle()
    rig.arena.part(2, 512)[:] = 0
    rig.arena.part(5, 4000 - 40)[:] = 0
    _, failed, _ = rig.ended(rig.load(range(6), OTHERS, fetch=[2, 5]))
    assert not failed
    assert [rig.content(block) for block in OTHERS] == stored
    assert rig.reader.called("get") == [[name(KEYS[2]), name(KEYS[5])]]


def test_a_failed_fetch_comes_with_its_completion(rig: Rig) -> None:
    """In the same poll; the other blocks are loaded, those of failed keys are as they were."""
    stored = [rig.fill(block) for block in MIXED]
    rig.ended(rig.store(range(6), MIXED))
    rig.settle()
    assert rig.data is not None
    del rig.data[name(KEYS[1])]
    rig.data[name(KEYS[3])] += b"x"
    before = [rig.content(block) for block in OTHERS]
    job = rig.load(range(6), OTHERS, fetch=range(6))
    done: list[Done] = []
    wait_until("the load ends", lambda: done or done.__iadd__(rig.mover.poll()))
    assert [one.job_id for one in done] == [job]
    assert rig.mover.take_failed_requests() == {f"r{job}"}
    assert rig.mover.take_reports().failed == {100 + job: {1, 3}}
    assert rig.mover.take_failed_requests() == set()
    assert not rig.mover.take_reports()
    now = [rig.content(block) for block in OTHERS]
    assert now == [before[n] if n in (1, 3) else stored[n] for n in range(6)]
    wait_until("the part of another length is removed", lambda: name(KEYS[3]) not in (rig.data or {}))
    assert rig.writer.called("delete") == [[name(KEYS[3])]]


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.FAILED])
def test_a_lost_store_fails_what_was_to_be_fetched(rig: Rig, outcome: Outcome) -> None:
    """And nothing else; nothing is removed because of it."""
    stored = rig.fill((0, 1))
    rig.ended(rig.store([0], [(0, 1)]))
    rig.settle()
    rig.reader.outcome = outcome
    _, failed, reports = rig.ended(job := rig.load([0, 1], [(0, 5), (0, 6)], fetch=[1]))
    assert (failed, reports.failed) == ({f"r{job}"}, {100 + job: {1}})
    assert rig.content((0, 5)) == stored
    rig.settle()
    assert rig.writer.called("delete") == []


@pytest.mark.parametrize("position", [0, 5, 20, 30, 45, 60, HEADER_BYTES, HEADER_BYTES + 3959])
def test_a_damaged_row_is_a_failure(rig: Rig, position: int) -> None:
    """Header or payload. The block stays as it was, and so does the store's copy, which nobody looked at."""
    rig.fill((0, 1))
    stored = rig.fill((0, 2))
    rig.ended(rig.store([0, 1], [(0, 1), (0, 2)]))
    rig.settle()
    rig.arena.part(0, 3960)[position] ^= 0x10
    before = rig.content((0, 5))
    _, failed, reports = rig.ended(job := rig.load([0, 1], [(0, 5), (0, 6)]))
    assert (failed, reports.failed) == ({f"r{job}"}, {100 + job: {0}})
    assert (rig.content((0, 5)), rig.content((0, 6))) == (before, stored)
    rig.settle()
    assert rig.writer.called("delete") == []


def test_a_row_with_another_keys_bytes(alone: Rig) -> None:
    """A mistake in the bookkeeping of slots would not become wrong text."""
    alone.fill((0, 1))
    alone.ended(alone.store([0], [(0, 1)]))
    transfer = Transfer(Kind.LOAD, 7, "r", (KEYS[5],), (0,), (False,))
    before = alone.content((0, 9))
    alone.mover.load(99, transfer, [(0, 9)])
    _, failed, reports = alone.ended(99)
    assert (failed, reports.failed) == ({"r"}, {7: {0}})
    assert alone.content((0, 9)) == before
    assert alone.mover.outcomes["load other name"] == 1


def test_what_the_store_has_is_not_put_again(rig: Rig) -> None:
    """Another engine was first."""
    assert rig.data is not None
    rig.data[name(KEYS[0])] = b"there"
    rig.ended(rig.store([0, 1], [(1, 0), (1, 1)]))
    rig.settle()
    assert rig.writer.called("put") == [[name(KEYS[1])]]
    assert rig.data[name(KEYS[0])] == b"there"


def test_a_failed_put_is_reported(rig: Rig) -> None:
    """The store itself succeeded."""
    rig.writer.outcome = Outcome.FAILED
    _, _, reports = rig.ended(rig.store([0, 1], [(1, 0), (1, 1)]))
    reports = reports.merge(rig.settle())
    assert reports == Reports(puts={101: [{0, 1}]})


def test_a_put_that_raises_is_reported(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Else its slots would stay pinned for ever."""

    def fail(verb: str) -> None:
        raise RuntimeError("boom")

    rig.writer.before = fail
    _, _, reports = rig.ended(rig.store([0], [(1, 0)]))
    assert reports.merge(rig.settle()) == Reports(puts={101: [{0}]})
    assert "a put failed" in caplog.text


def test_puts_above_the_bound_are_dropped_and_reported(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow store costs bounded memory; the blocks stay in this engine's tier."""
    monkeypatch.setattr(putter, "MAX_QUEUED_PUTS", 2)
    go = threading.Event()
    rig.writer.before = lambda verb: go.wait(10)
    jobs = [rig.store([n], [(1, n)]) for n in range(5)]
    _, _, reports = rig.ended(*jobs)
    assert reports == Reports(puts={100 + job: [{0}] for job in jobs[2:]})
    assert not rig.mover.idle
    go.set()
    assert rig.settle() == Reports(puts={100 + job: [set()] for job in jobs[:2]})
    assert rig.mover.outcomes["put dropped"] == 3
    rig.ended(rig.store([7], [(1, 7)]))
    assert rig.settle().puts.keys() <= {106}
    assert name(KEYS[7]) in (rig.data or {})


def test_a_put_is_never_reported_ahead_of_its_store(rig: Rig) -> None:
    """Many quick ones, polled as fast as can be."""
    seen: set[int] = set()
    for _ in range(30):
        job = rig.store([0], [(2, 0)])
        while True:
            done, puts = rig.mover.poll(), rig.mover.take_reports().puts
            seen |= {one.job_id for one in done}
            assert {ticket - 100 for ticket in puts} <= seen
            if 100 + job in puts:
                break


def test_a_copy_that_raises_fails_the_job_and_ends_it(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Stores with their puts, loads with all keys; the lane goes on."""
    stored = rig.fill((0, 1))
    rig.ended(rig.store([0], [(0, 1)]))
    rig.settle()
    rig.device.broken = True
    with caplog.at_level(logging.ERROR):
        _, failed, reports = rig.ended(store := rig.store([1, 2], [(0, 2), (0, 3)]))
        reports = reports.merge(rig.settle())
        assert (failed, reports) == (set(), Reports({100 + store: {0, 1}}, {100 + store: [{0, 1}]}))
        _, failed, reports = rig.ended(load := rig.load([0], [(0, 5)]))
        assert (failed, reports) == ({f"r{load}"}, Reports({100 + load: {0}}))
    assert "no copy" in caplog.text
    rig.device.broken = False
    _, failed, _ = rig.ended(rig.load([0], [(0, 5)]))
    assert not failed
    assert rig.content((0, 5)) == stored


def test_a_reader_that_raises_fails_the_job_and_ends_it(rig: Rig) -> None:
    """A fault of ours in a client."""

    def fail(verb: str) -> None:
        raise RuntimeError("boom")

    rig.reader.before = fail
    _, failed, reports = rig.ended(job := rig.load([0, 1], [(1, 0), (1, 1)], fetch=[0]))
    assert (failed, reports) == ({f"r{job}"}, Reports({100 + job: {0, 1}}))
    rig.mover.wait({job})


def test_a_slow_fetch_holds_up_nobody_else(rig: Rig) -> None:
    """Loads from memory and stores go on."""
    rig.ended(rig.store([0], [(1, 0)]))
    go = threading.Event()
    rig.reader.before = lambda verb: go.wait(10)
    slow = rig.load([1], [(1, 1)], fetch=[1])
    rig.ended(rig.load([0], [(1, 2)]), rig.store([2], [(1, 3)]))
    assert not rig.mover.idle
    go.set()
    _, failed, _ = rig.ended(slow)
    assert failed == {f"r{slow}"}


def test_wait_blocks_until_the_jobs_left_kv_memory_alone(rig: Rig) -> None:
    """Not for puts, and not for jobs that are unknown or over."""
    stuck = threading.Event()
    rig.writer.before = lambda verb: stuck.wait(10)
    job = rig.store([0], [(1, 0)])
    rig.mover.wait({job, 999})
    go, started = threading.Event(), threading.Event()

    def fetching(verb: str) -> None:
        started.set()
        go.wait(10)

    rig.reader.before = fetching
    slow = rig.load([1], [(1, 1)], fetch=[1])
    assert started.wait(5)
    waiter = threading.Thread(target=lambda: rig.mover.wait({slow}))
    waiter.start()
    assert waiter.is_alive()
    go.set()
    waiter.join(5)
    assert not waiter.is_alive()
    stuck.set()


def test_close_finishes_what_runs_and_ends_the_threads() -> None:
    """A store that was queued is put, the connections are closed."""
    rig = Rig({})
    rig.writer.before = lambda verb: None
    stored = [rig.fill((1, n)) for n in range(8)]
    for n in range(8):
        rig.store([n], [(1, n)])
    rig.mover.close()
    assert rig.data is not None
    assert [rig.data[name(KEYS[n])][HEADER_BYTES:] for n in range(8)] == stored
    assert rig.reader.closed
    assert rig.writer.closed
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"kvpool-copy", "kvpool-read", "kvpool-write"}


def test_close_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A store that keeps no deadline: its lane is given up, and the arena's memory stays registered."""
    rig = Rig({}, fetch_s=-4.95, put_s=0)  # leaves 0.05 s for each lane
    go, closed = threading.Event(), list[bool]()
    monkeypatch.setattr(rig.device, "close", lambda: closed.append(True))
    rig.reader.before = lambda verb: go.wait(10)
    rig.load([1], [(1, 1)], fetch=[1])
    begin = time.monotonic()
    rig.mover.close()
    assert time.monotonic() - begin < 1
    assert "a lane did not end" in caplog.text
    assert not closed
    go.set()
    rig.mover._read._thread.join(5)
