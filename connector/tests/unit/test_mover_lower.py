"""The data plane of a rank over its lower tiers: a real slab, a store; loads in stages, spills, probes, samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from connector.tests.unit.rank import MIXED, OTHERS, PAYLOAD, SLOTS, Rank, closing, key, name, small
from kvpool_connector.stores import Loan, Outcome
from kvpool_connector.stores.memory import address_of
from kvpool_connector.transfer import STORE_SILENT, Tier
from testkit.patience import PATIENCE_S
from testkit.servers import wait_until


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Rank]:
    """With all tiers."""
    with closing(Rank({}, tmp_path)) as it:
        yield it


@pytest.fixture
def alone() -> Iterator[Rank]:
    """Without lower tiers."""
    with closing(Rank()) as it:
        yield it


# ---- loads -----------------------------------------------------------------------------------------------------


def test_disk_round_trip(rank: Rank) -> None:
    """Through the slab, whole rows, into other blocks."""
    stored = rank.stored_below(Tier.DISK, range(5), MIXED)
    _, failed, reports = rank.ended(rank.load(range(5), OTHERS, disk=range(5)))
    assert (failed, reports.failed) == (set(), {})
    assert [rank.content(chunk) for chunk in OTHERS] == stored


def test_what_is_on_disk_outlives_the_rank(tmp_path: Path) -> None:
    """Another process finds it in the same slots."""
    with closing(Rank(folder=tmp_path)) as rank:
        stored = rank.stored_below(Tier.DISK, range(5), MIXED)
    with closing(Rank(folder=tmp_path)) as rank:
        assert not rank.ended(rank.load(range(5), OTHERS, disk=range(5)))[1]
        assert [rank.content(chunk) for chunk in OTHERS] == stored


def test_memory_disk_and_remote_in_one_load(rank: Rank) -> None:
    """Each part from where it is, and from nowhere else."""
    stored = [rank.fill(chunk) for chunk in MIXED]
    rank.ended(rank.store(range(5), MIXED))
    rank.spilled(rank.spill(Tier.DISK, 1, 3), rank.spill(Tier.REMOTE, 2, 4))
    rank.wipe(1, 2, 3, 4)
    _, failed, reports = rank.ended(rank.load(range(5), OTHERS, disk=[1, 3], remote=[2, 4]))
    assert (failed, reports.failed) == (set(), {})
    assert [rank.content(chunk) for chunk in OTHERS] == stored
    assert rank.reader.called("get") == [[name(key(2, 1)), name(key(4, 1))]]


def test_a_failed_disk_read_fails_its_keys_only(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fetch from the store goes on after it."""
    stored = rank.stored_below(Tier.REMOTE, range(3), MIXED[:3])
    assert rank.slab is not None
    monkeypatch.setattr(
        rank.slab, "read_into", lambda slots, rows, deadline: [Outcome.HIT, Outcome.FAILED][: len(slots)]
    )
    rank.ended(rank.load([0], OTHERS[:1], remote=[0]))  # the first row is good again
    before = rank.content(OTHERS[1])
    _, _, reports = rank.ended(job := rank.load(range(3), OTHERS[:3], disk=[0, 1], remote=[2]))
    assert reports.failed == {100 + job: {1}}
    assert [rank.content(chunk) for chunk in OTHERS[:3]] == [stored[0], before, stored[2]]


def test_a_slot_of_the_slab_with_another_keys_bytes(rank: Rank) -> None:
    """A miss; and the store's copy, which nobody looked at, is left alone."""
    rank.stored_below(Tier.DISK, [0, 1], [small(0, 1), small(2, 3)])
    assert rank.slab is not None
    rank.slab.write_from([0], [rank.arena.row(11)], float("inf"))
    before = rank.content(small(4, 5))
    _, _, reports = rank.ended(job := rank.load([0, 1], [small(4, 5), small(6, 7)], disk=[0, 1]))
    assert reports.failed == {100 + job: {0}}
    assert rank.content(small(4, 5)) == before
    assert rank.writer.called("delete") == []


def test_the_budget_of_a_load_bounds_its_reads(rank: Rank) -> None:
    """What is not there by then is computed."""
    rank.stored_below(Tier.DISK, [0], [small(0, 1)])
    _, _, reports = rank.ended(job := rank.load([0], [small(4, 5)], disk=[0], fetch_s=0.0))
    assert reports.failed == {100 + job: {0}}
    assert rank.mover.outbox.outcomes["load timeout"] == 1


def test_a_slow_fetch_holds_up_nobody_else(rank: Rank) -> None:
    """Loads from memory and disk, and stores, go on."""
    rank.stored_below(Tier.DISK, [3], [small(0, 1)])
    rank.ended(rank.store([0], [small(0, 1)]))
    go = threading.Event()
    rank.reader.before = lambda verb: go.wait(10)
    slow = rank.load([1], [small(2, 3)], remote=[0])
    rank.ended(rank.load([0], [small(4, 5)]), rank.store([2], [small(6, 7)]), rank.load([3], [small(8, 9)], disk=[0]))
    assert not rank.mover.idle
    go.set()
    assert rank.ended(slow)[1] == {f"r{slow}"}


class Lender:
    """Makes the rank's store give reads up in mid-batch, with what it was reading from a position on still lent."""

    def __init__(self, rank: Rank, first: int) -> None:
        self.parts: list[memoryview] = []
        self._free: list[Callable[[], object]] = []

        def get_into(keys: Sequence[bytes], parts: Sequence[memoryview], deadline: float) -> list[Outcome]:
            positions = range(min(first, len(parts)), min(first + 2, len(parts)))
            self.parts = [parts[position] for position in positions]
            rank.reader.lent = Loan(positions, self._free.append) if positions else None
            return [Outcome.HIT] * positions.start + [Outcome.TIMEOUT] * (len(parts) - positions.start)

        rank.reader.get_into = get_into  # type: ignore[method-assign,assignment]

    def go_on(self) -> None:
        """The call writes what it was to write, wherever that is now."""
        for part in self.parts:
            part[:] = b"\xbb" * len(part)

    def end(self) -> None:
        """The call returns."""
        for what in self._free:
            what()
        self._free.clear()


def test_a_call_that_was_given_up_fills_no_row_of_anybody(tmp_path: Path) -> None:
    """Its slots have other rows by the time their load is reported, and get them back in turn when the call has returned."""
    with closing(Rank({}, tmp_path, most_lent=2)) as rank:
        for _ in range(3):
            numbers = range(4)
            rank.stored_below(Tier.REMOTE, numbers, [small(n, n + 1) for n in numbers])
            rank.ended(rank.store(numbers, [small(n, n + 1) for n in numbers]))
            lender = Lender(rank, first=1)
            _, _, reports = rank.ended(job := rank.load(numbers, [small(n, n + 1) for n in numbers], remote=numbers))
            assert reports.failed == {100 + job: {1, 2, 3}}
            stored = [rank.fill(small(2 * n, 2 * n + 1)) for n in numbers]
            rank.ended(rank.store(numbers, [small(2 * n, 2 * n + 1) for n in numbers]))
            lender.go_on()
            rank.ended(job := rank.load(numbers, [small(n + 8, n + 12) for n in numbers]))
            assert [rank.content(small(n + 8, n + 12)) for n in numbers] == stored
            lender.end()
            del rank.reader.get_into
            rank.reader.lent = None


def test_a_probe_that_was_given_up(tmp_path: Path) -> None:
    """Its row, too, is replaced: the next probe reads into another one."""
    with closing(Rank({}, tmp_path, most_lent=2)) as rank:
        rank.stored_below(Tier.REMOTE, [0], [small(0, 1)])
        lender = Lender(rank, first=0)
        first = []
        for _ in range(2):
            rank.probe(Tier.REMOTE, 0)
            wait_until("it was asked", lambda: bool(lender.parts))
            rank.until("its sample", lambda _, reports: bool(reports.samples))
            first.append(address_of(lender.parts[0]))
            lender.parts = []
        assert len(set(first)) == 2


def test_a_read_goes_before_queued_writes(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for one turn of the disk's lane, not for the whole spill."""
    numbers, chunks = range(SLOTS), [small(n, n + 1) for n in range(SLOTS)]
    rank.stored_below(Tier.DISK, [0], chunks[:1])
    rank.ended(rank.store(numbers[1:], chunks[1:]))
    slab, started, go, order = rank.slab, threading.Event(), threading.Event(), list[str]()
    assert slab is not None
    read, write = slab.read_into, slab.write_from

    def reading(slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
        order.append("read")
        return read(slots, rows, deadline)

    def writing(slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
        started.set()
        go.wait(10)
        order.append(f"write {len(slots)}")
        return write(slots, rows, deadline)

    monkeypatch.setattr(slab, "read_into", reading)
    monkeypatch.setattr(slab, "write_from", writing)
    ticket = rank.spill(Tier.DISK, *numbers[1:])
    assert started.wait(PATIENCE_S)
    rank.load([0], [small(14, 15)], disk=[0])
    go.set()
    rank.until("both end", lambda done, reports: bool(done) and ticket in reports.spilled)
    assert order == ["write 8", "read", "write 3"]


# ---- spills ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", [Tier.DISK, Tier.REMOTE])
def test_a_spill_without_its_tier_is_reported_as_not_written(alone: Rank, tier: Tier) -> None:
    """A rank whose tier is missing must not keep the scheduler's rows pinned."""
    alone.ended(alone.store([0, 1], [small(0, 1), small(2, 3)]))
    ticket = alone.spill(tier, 0, 1)
    assert alone.spilled(ticket) == {ticket: [{0, 1}]}


def test_the_mover_is_not_idle_before_a_spill_was_polled(rank: Rank) -> None:
    """vLLM must go on stepping until then."""
    rank.ended(rank.store([0], [small(0, 1)]))
    ticket = rank.spill(Tier.DISK, 0)
    wait_until("it ended", lambda: not rank.mover.outbox._spilled.empty())
    assert not rank.mover.idle
    rank.spilled(ticket)
    assert rank.mover.idle


def test_what_the_store_has_is_not_put_again(rank: Rank) -> None:
    """Another engine was first. It is in the tier all the same."""
    rank.data[name(key(0, 1))] = b"there"
    rank.ended(rank.store([0, 1], [small(0, 1), small(2, 3)]))
    ticket = rank.spill(Tier.REMOTE, 0, 1)
    assert rank.spilled(ticket) == {ticket: [set()]}
    assert rank.writer.called("put") == [[name(key(1, 1))]]
    assert rank.data[name(key(0, 1))] == b"there"


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.FAILED])
def test_a_failed_write_to_the_store_is_reported(rank: Rank, outcome: Outcome) -> None:
    """All positions: not one is known to be there."""
    rank.ended(rank.store([0, 1], [small(0, 1), small(2, 3)]))
    rank.writer.outcome = outcome
    ticket = rank.spill(Tier.REMOTE, 0, 1)
    assert rank.spilled(ticket) == {ticket: [{0, 1}]}


@pytest.mark.parametrize("verb", ["exists", "put"])
def test_a_write_to_the_store_that_raises_is_reported_once(
    rank: Rank, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Else its rows would stay pinned for ever. The lane goes on."""

    def fail(what: str) -> None:
        if what == verb:
            raise RuntimeError("boom")

    rank.ended(rank.store([0, 1], [small(0, 1), small(2, 3)]))
    rank.writer.before = fail
    ticket = rank.spill(Tier.REMOTE, 0, 1)
    assert rank.spilled(ticket) == {ticket: [{0, 1}]}
    assert "a write to the remote store failed" in caplog.text
    rank.writer.before = lambda what: None
    again = rank.spill(Tier.REMOTE, 0, 1)
    assert rank.spilled(again) == {again: [set()]}


def test_a_spill_of_several_turns_is_reported_once(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what each turn could not write, whether it said so or raised."""
    numbers, chunks = range(SLOTS), [small(n, n + 1) for n in range(SLOTS)]
    rank.ended(rank.store(numbers, chunks))
    slab, turns = rank.slab, list[int]()
    assert slab is not None

    def writing(slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
        turns.append(len(slots))
        if len(turns) == 2:
            raise RuntimeError("boom")
        return [Outcome.FAILED, *[Outcome.HIT] * (len(slots) - 1)]

    monkeypatch.setattr(slab, "write_from", writing)
    ticket = rank.spill(Tier.DISK, *numbers)
    assert rank.spilled(ticket) == {ticket: [{0, 8, 9, 10, 11}]}
    assert turns == [8, 4]
    assert rank.mover.idle


def test_errors_of_the_disk_are_counted(rank: Rank) -> None:
    """By their names, and once."""
    rank.ended(rank.store([0], [small(0, 1)]))
    assert rank.slab is not None
    rank.slab.errors["ENOSPC"] += 2
    rank.spilled(rank.spill(Tier.DISK, 0))
    assert (rank.mover.outbox.outcomes["disk ENOSPC"], rank.mover.outbox.outcomes["disk write hit"]) == (2, 1)
    rank.spilled(rank.spill(Tier.DISK, 0))
    assert rank.mover.outbox.outcomes["disk ENOSPC"] == 2


# ---- how fast is a tier? ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", [Tier.DISK, Tier.REMOTE])
def test_a_read_is_timed(rank: Rank, tier: Tier) -> None:
    """Bytes of what arrived."""
    rank.stored_below(tier, range(2), MIXED[:2])
    below = {tier.value: range(2)}
    rank.load(range(2), OTHERS[:2], **below)  # type: ignore[arg-type]
    (sample,) = rank.until("its sample", lambda done, reports: bool(done and reports.samples))[2].samples
    assert (sample.tier, sample.nbytes) == (tier, 2 * PAYLOAD[0])
    assert 0 < sample.seconds < 5


@pytest.mark.parametrize("tier", [Tier.DISK, Tier.REMOTE])
def test_a_probe_reads_a_part_and_throws_it_away(rank: Rank, tier: Tier) -> None:
    """No row of the scheduler's is touched."""
    rank.stored_below(tier, [0], MIXED[:1])
    before = [rank.row(slot) for slot in range(SLOTS)]
    rank.probe(tier, 0)
    (sample,) = rank.until("its sample", lambda _, reports: bool(reports.samples))[2].samples
    assert (sample.tier, sample.nbytes) == (tier, PAYLOAD[0])
    assert [rank.row(slot) for slot in range(SLOTS)] == before


def test_a_read_that_was_given_up_bounds_the_speed_of_its_tier(rank: Rank) -> None:
    """Else a store that is too slow for its deadline would never be known as slow."""
    rank.stored_below(Tier.REMOTE, [0], [small(0, 1)])
    rank.reader.outcome = Outcome.TIMEOUT
    rank.load([0], [small(0, 1)], remote=[0])
    (sample,) = rank.until("its sample", lambda _, reports: bool(reports.samples))[2].samples
    assert (sample.tier, sample.nbytes, sample.at_most) == (Tier.REMOTE, PAYLOAD[1], True)


def test_a_store_that_was_silent_is_told_and_says_nothing_about_speed(rank: Rank) -> None:
    """Also where something came before. What is on disk is not lost by it."""
    rank.stored_below(Tier.REMOTE, [0, 1], [small(0, 1), small(2, 3)])
    outcomes = [Outcome.HIT, Outcome.STALLED]
    rank.reader.get_into = lambda keys, buffers, deadline: outcomes  # type: ignore[method-assign]
    _, _, reports = rank.ended(job := rank.load([0, 1], [small(0, 1), small(2, 3)], remote=[0, 1]))
    assert 1 in reports.failed[100 + job]
    assert 1 not in reports.lost[100 + job]
    assert reports.samples == []
    assert reports.counts[STORE_SILENT] == 1


@pytest.mark.parametrize("outcome", [Outcome.MISS, Outcome.FAILED, Outcome.STALLED])
def test_a_read_that_brought_nothing_says_nothing_about_speed(rank: Rank, outcome: Outcome) -> None:
    """Neither a load's nor a probe's."""
    rank.stored_below(Tier.REMOTE, [0], [small(0, 1)])
    rank.reader.outcome = outcome
    rank.probe(Tier.REMOTE, 0)
    _, _, reports = rank.ended(rank.load([0], [small(0, 1)], remote=[0]))
    assert rank.until("counts", lambda _, __: rank.mover.outbox.outcomes[f"get {outcome.value}"] == 2)[2].samples == []
    assert reports.samples == []


def test_a_probe_of_a_tier_that_is_not_there_is_ignored(alone: Rank) -> None:
    """It has no answer that anybody waits for."""
    alone.ended(alone.store([0], [small(0, 1)]))
    for tier in (Tier.DISK, Tier.REMOTE):
        alone.probe(tier, 0)
    _, _, reports = alone.ended(alone.load([0], [small(2, 3)]))
    assert reports.samples == []
    assert alone.mover.idle
