"""A disk that hangs, in each phase: at the start, in a read, in a write, in a queue, at a reset, at the end. The file system is
a real one (FUSE), whose server is stopped: system calls do not return until it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from connector.tests.unit.rank import DISK_LENDS, SLOTS, Rank, closing, small
from connector.tests.unit.slabs import IDENTITY, ROW, slab_in
from kvpool_connector.config import ConfigError
from kvpool_connector.tiers import slab_calls, starting
from kvpool_connector.tiers.journal import Journal
from kvpool_connector.tiers.slab import Slab
from kvpool_connector.tiers.starting import started
from kvpool_connector.transfer import DISK_RETURNED, DISK_SILENT, Tier
from kvpool_connector.worker import mover as mover_module
from kvpool_connector.worker.secondary.disk import DiskTier
from testkit.hanging_disk import CAN_MOUNT, HangingDisk
from testkit.patience import PATIENCE_S, promptly
from testkit.servers import wait_until

pytestmark = pytest.mark.skipif(not CAN_MOUNT, reason="takes root and /dev/fuse")

NUMBERS = range(4)
CHUNKS = [small(2 * number, 2 * number + 1) for number in NUMBERS]
ELSEWHERE = [small(2 * number + 8, 2 * number + 9) for number in NUMBERS]
MORE_S = 0.3
"""What a request may wait beyond its fetch budget."""


@pytest.fixture
def disk() -> Iterator[HangingDisk]:
    """Mounted. What `promptly` compares with runs already: a process that is started closes the files that it inherits, and
    on a disk that hangs it does not come to its end."""
    with promptly(PATIENCE_S):
        pass
    with HangingDisk() as it:
        yield it


@pytest.fixture
def rank(disk: HangingDisk) -> Iterator[Rank]:
    """With a slab on the disk, which answers again before the rank ends."""
    with closing(Rank({}, disk.path)) as it:
        yield it
        disk.go_on()


def counted(rank: Rank, what: str) -> int:
    """How often, so far."""
    rank.mover.outbox.poll()
    return rank.mover.outbox.outcomes[what]


def disk_calls(rank: Rank) -> slab_calls.SlabCalls:
    """Of the rank's slab."""
    tier = rank.mover._secondary[Tier.DISK]
    assert isinstance(tier, DiskTier)
    return tier._slab


# ---- start ---------------------------------------------------------------------------------------------------------


def test_a_slab_is_not_waited_for(disk: HangingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is told which setting it is; what was opened after all is closed again."""
    monkeypatch.setattr(starting, "STEP_S", 0.1)
    folder = disk.path / "slabs"
    disk.hang()
    with promptly(1), pytest.raises(ConfigError, match=r"tiers\.disk\.path: .*/slabs does not answer"):
        started(folder, lambda beat: Slab(folder, 0, 4, ROW, IDENTITY, beat), lambda slab: slab.close())
    disk.go_on()
    wait_until("its thread ended", lambda: all(one.name != "kvpool-start" for one in threading.enumerate()))
    slab_in(folder).close()


def test_a_journal_is_not_waited_for(disk: HangingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "STEP_S", 0.1)
    disk.hang()
    with promptly(1), pytest.raises(ConfigError, match=r"tiers\.disk\.path: .* does not answer"):
        started(disk.path, lambda beat: Journal(disk.path, 4, ROW, IDENTITY, beat), lambda journal: journal.close())
    disk.go_on()
    wait_until("its thread ended", lambda: all(one.name != "kvpool-start" for one in threading.enumerate()))
    Journal(disk.path, 4, ROW, IDENTITY).close()


def test_the_schedulers_half_tells_a_journal_that_hangs(disk: HangingDisk) -> None:
    """It neither waits at a record nor for ever at its end."""
    journal = Journal(disk.path, 4, ROW, IDENTITY)
    disk.hang()
    with promptly(0.5):
        for number in range(1000):
            journal.stored(b"key", number % 4)
    with promptly(1):
        journal.close(0.1)
    disk.go_on()
    journal.close()
    assert Journal(disk.path, 4, ROW, IDENTITY).recovered() == [(b"key", 3)]


# ---- reads ---------------------------------------------------------------------------------------------------------


def test_a_load_ends_by_its_deadline(rank: Rank, disk: HangingDisk) -> None:
    """The next one at once; memory is served meanwhile; the disk is used again when the call has returned."""
    stored = rank.stored_below(Tier.DISK, NUMBERS, CHUNKS)
    disk.hang()
    with promptly(1.0 + MORE_S):
        _, failed, reports = rank.ended(job := rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS, fetch_s=1.0))
    assert (failed, reports.failed, reports.lost) == ({f"r{job}"}, {100 + job: set(NUMBERS)}, {100 + job: set()})
    assert counted(rank, DISK_SILENT) == 1
    with promptly(MORE_S):
        _, failed, reports = rank.ended(job := rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS, fetch_s=30))
    assert reports.lost == {100 + job: set()}
    assert reports.samples == []
    content = rank.fill(CHUNKS[0])
    rank.ended(rank.store([8], CHUNKS[:1]))
    assert not rank.ended(rank.load([8], ELSEWHERE[:1]))[1]
    assert rank.content(ELSEWHERE[0]) == content
    disk.go_on()
    wait_until("the call returned", lambda: counted(rank, DISK_RETURNED) == 1)
    assert not rank.ended(rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS))[1]
    assert [rank.content(chunk) for chunk in ELSEWHERE] == stored
    assert counted(rank, DISK_SILENT) == 1


def test_a_read_that_was_given_up_fills_no_row_of_anybody(rank: Rank, disk: HangingDisk) -> None:
    """What hangs is the first call of the read, for some of the rows; they are other slots' when it fills them."""
    for _ in range(3):
        rank.stored_below(Tier.DISK, NUMBERS, CHUNKS)
        disk.hang()
        rank.ended(rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS, fetch_s=0.5))
        written = [rank.fill(chunk) for chunk in CHUNKS]
        rank.ended(rank.store(NUMBERS, CHUNKS))
        disk.go_on()
        wait_until("the call returned", lambda: not disk_calls(rank)._caller.busy)
        assert not rank.ended(rank.load(NUMBERS, ELSEWHERE))[1]
        assert [rank.content(chunk) for chunk in ELSEWHERE] == written
        assert len(rank.mover._rows._spare) == DISK_LENDS


def test_a_disk_that_hangs_costs_no_whole_budget(
    rank: Rank, disk: HangingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that takes longer than any disk needs is given up, though the load had more time."""
    monkeypatch.setattr(slab_calls, "READ_S", 0.2)
    rank.stored_below(Tier.DISK, NUMBERS, CHUNKS)
    disk.hang()
    with promptly(0.2 + MORE_S):
        rank.ended(rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS, fetch_s=60))


def test_a_probe_hangs(rank: Rank, disk: HangingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing about the disk's speed, holds up no load for longer than that may wait, and its row is replaced."""
    monkeypatch.setattr(slab_calls, "READ_S", 1.0)
    rank.stored_below(Tier.DISK, NUMBERS, CHUNKS)
    disk.hang()
    rank.probe(Tier.DISK, 0)
    wait_until("the probe reads", lambda: disk_calls(rank)._caller.busy)
    with promptly(0.1 + MORE_S):
        _, failed, reports = rank.ended(job := rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS, fetch_s=0.1))
    assert (failed, reports.samples) == ({f"r{job}"}, [])
    wait_until("the probe was given up", lambda: counted(rank, DISK_SILENT) == 1)
    disk.go_on()
    wait_until("it returned", lambda: counted(rank, DISK_RETURNED) == 1)
    assert rank.mover._rows.probed == rank.arena.slots - 2
    assert len(rank.mover._rows._spare) == DISK_LENDS


# ---- writes --------------------------------------------------------------------------------------------------------


def test_a_write_is_reported_as_lost(rank: Rank, disk: HangingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are free then: other content in them is what memory serves, and the slab's check refuses what it got."""
    monkeypatch.setattr(slab_calls, "WRITE_S", 1.0)
    numbers, chunks = range(SLOTS), [small(n, n + 1) for n in range(SLOTS)]
    for chunk in chunks:
        rank.fill(chunk)
    rank.ended(rank.store(numbers, chunks))
    disk.hang()
    with promptly(1.0 + MORE_S):
        assert rank.spilled(ticket := rank.spill(Tier.DISK, *numbers)) == {ticket: [set(numbers)]}
    with promptly(MORE_S):
        assert rank.spilled(ticket := rank.spill(Tier.DISK, 0)) == {ticket: [{0}]}
    assert rank.mover.idle
    rank.wipe(*numbers)
    disk.go_on()
    wait_until("the call returned", lambda: counted(rank, DISK_RETURNED) == 1)
    contents = [rank.fill(chunk) for chunk in CHUNKS]
    rank.ended(rank.store([4, 5, 6, 7], CHUNKS))
    assert rank.spilled(ticket := rank.spill(Tier.DISK, 4, 5, 6, 7)) == {ticket: [set()]}
    rank.wipe(4, 5, 6, 7)
    assert not rank.ended(rank.load([4, 5, 6, 7], ELSEWHERE, disk=NUMBERS))[1]
    assert [rank.content(chunk) for chunk in ELSEWHERE] == contents


def test_a_load_behind_a_write_that_hangs(rank: Rank, disk: HangingDisk) -> None:
    """The lane is held up for longer than the load may take. What memory has of it is loaded."""
    stored = rank.stored_below(Tier.DISK, NUMBERS, CHUNKS)
    content = rank.fill(small(10, 11))
    rank.ended(rank.store([10], [small(10, 11)]))
    disk.hang()
    ticket = rank.spill(Tier.DISK, 10)
    wait_until("it writes", lambda: disk_calls(rank)._caller.busy)
    with promptly(0.2 + MORE_S):
        _, _, reports = rank.ended(
            job := rank.load([*NUMBERS, 10], [*CHUNKS, small(12, 13)], disk=NUMBERS, fetch_s=0.2)
        )
    assert reports.failed == {100 + job: set(NUMBERS)}
    assert rank.content(small(12, 13)) == content
    assert counted(rank, "fetch not begun in time") == len(NUMBERS)
    disk.go_on()
    assert rank.spilled(ticket) == {ticket: [set()]}
    assert not rank.ended(rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS))[1]
    assert [rank.content(chunk) for chunk in ELSEWHERE] == stored


# ---- reset and end -------------------------------------------------------------------------------------------------


def test_a_reset_waits_for_no_fetch_that_has_not_begun(rank: Rank, disk: HangingDisk) -> None:
    """vLLM's worker waits for all jobs then, on its main thread."""
    rank.stored_below(Tier.DISK, NUMBERS, CHUNKS)
    rank.ended(rank.store([8], [small(8, 9)]))
    disk.hang()
    rank.spill(Tier.DISK, 8)
    wait_until("it holds the lane up", lambda: disk_calls(rank)._caller.busy)
    job = rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS, fetch_s=60)
    with promptly(MORE_S):
        rank.mover.wait({job})
    assert rank.ended(job)[1] == {f"r{job}"}


def test_a_reset_in_the_middle_of_a_read(rank: Rank, disk: HangingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are other slots' from then on."""
    monkeypatch.setattr(slab_calls, "READ_S", 0.2)
    rank.stored_below(Tier.DISK, NUMBERS, CHUNKS)
    disk.hang()
    job = rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS, fetch_s=60)
    wait_until("it reads", lambda: disk_calls(rank)._caller.busy)
    with promptly(0.2 + MORE_S):
        rank.mover.wait({job})
    written = [rank.fill(chunk) for chunk in CHUNKS]
    rank.ended(rank.store(NUMBERS, CHUNKS))
    disk.go_on()
    wait_until("the call returned", lambda: counted(rank, DISK_RETURNED) == 1)
    assert not rank.ended(rank.load(NUMBERS, ELSEWHERE))[1]
    assert [rank.content(chunk) for chunk in ELSEWHERE] == written


def test_the_end_is_bounded(
    disk: HangingDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a read that hangs and with a file that cannot be closed; the arena stays registered with the device."""
    monkeypatch.setattr(mover_module, "CLOSE_S", 0.5)
    rank = Rank(None, disk.path)
    rank.stored_below(Tier.DISK, NUMBERS, CHUNKS)
    disk.hang()
    job = rank.load(NUMBERS, ELSEWHERE, disk=NUMBERS, fetch_s=0.1)
    began = time.monotonic()
    with promptly(0.5 + 1):
        rank.mover.close()
    assert rank.ended(job)[1] == {f"r{job}"}
    assert "its file stays open and locked until this process ends" in caplog.text
    assert time.monotonic() - began < PATIENCE_S
    disk.go_on()
    wait_until("its thread ended", lambda: all(one.name != "kvpool-slab" for one in threading.enumerate()))


def test_a_file_that_cannot_be_closed(disk: HangingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover_module, "CLOSE_S", 0.2)
    rank = Rank(None, disk.path)
    disk.hang()
    with promptly(0.2 + 1):
        rank.mover.close()
    disk.go_on()
    wait_until("its thread ended", lambda: all(one.name != "kvpool-slab" for one in threading.enumerate()))
    slab_in(disk.path).close()
