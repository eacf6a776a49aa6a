"""The data plane of a rank over numpy arrays: memory and the remote store, byte for byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from connector.tests.unit.rank import BLOCKS, GROUPS, MIXED, OTHERS, PAD, PAYLOAD, Rank, closing, key, name, small
from kvpool_connector.format import HEADER_BYTES
from kvpool_connector.stores import Outcome
from kvpool_connector.transfer import Kind, Tier, Transfer
from kvpool_connector.worker.device.base import Chunk
from kvpool_connector.worker.job import Done
from testkit.patience import PATIENCE_S
from testkit.servers import wait_until


@pytest.fixture
def rank() -> Iterator[Rank]:
    """With a remote store."""
    with closing(Rank({})) as it:
        yield it


@pytest.fixture
def alone() -> Iterator[Rank]:
    """Without lower tiers."""
    with closing(Rank()) as it:
        yield it


def test_memory_round_trip(alone: Rank) -> None:
    """Groups of different sizes; into other blocks; nothing beside the blocks is touched."""
    stored = [alone.fill(chunk) for chunk in MIXED]
    done, failed, reports = alone.ended(alone.store(range(5), MIXED))
    assert [(one.job_id, one.nbytes) for one in done] == [(1, sum(map(len, stored)))]
    assert (failed, reports.failed, reports.differed, reports.spilled) == (set(), {}, {}, {})
    before = [[view.copy() for view in group] for group in alone.memory]
    alone.ended(alone.load(range(5), OTHERS))
    assert [alone.content(chunk) for chunk in OTHERS] == stored
    for group, views in enumerate(alone.memory):
        touched = {block for chunk in OTHERS if chunk.group == group for block in chunk.blocks}
        for view, was, (_, size) in zip(views, before[group], GROUPS[group], strict=True):
            assert np.all(view[:, size:] == PAD)
            for block in set(range(BLOCKS)) - touched:
                assert np.array_equal(view[block], was[block])


def test_only_the_blocks_that_are_missing_are_loaded(alone: Rank) -> None:
    """vLLM holds the first block of the chunk already: what it gets is the second one."""
    stored = alone.fill(Chunk(0, 0, (3, 4)))
    alone.ended(alone.store([0], [Chunk(0, 0, (3, 4))]))
    alone.ended(alone.load([0], [Chunk(0, 1, (9,))]))
    assert alone.content(Chunk(0, 1, (9,))) == stored[len(stored) // 2 :]


def test_remote_round_trip(rank: Rank) -> None:
    """Through the store, into another engine's empty memory."""
    stored = rank.stored_below(Tier.REMOTE, range(5), MIXED)
    assert {part: len(value) - HEADER_BYTES for part, value in rank.data.items()} == {
        name(key(n, chunk.group)): PAYLOAD[chunk.group] for n, chunk in enumerate(MIXED)
    }
    with closing(Rank(rank.data)) as other:
        _, failed, reports = other.ended(other.load(range(5), OTHERS, remote=range(5)))
        assert (failed, reports.failed) == (set(), {})
        assert [other.content(chunk) for chunk in OTHERS] == stored


def test_memory_and_remote_in_one_load(rank: Rank) -> None:
    """Some rows are there, some are fetched, and only those."""
    stored = [rank.fill(chunk) for chunk in MIXED]
    rank.ended(rank.store(range(5), MIXED))
    rank.spilled(rank.spill(Tier.REMOTE, *range(5)))
    rank.wipe(2, 4)
    _, failed, _ = rank.ended(rank.load(range(5), OTHERS, remote=[2, 4]))
    assert not failed
    assert [rank.content(chunk) for chunk in OTHERS] == stored
    assert rank.reader.called("get") == [[name(key(2, 1)), name(key(4, 1))]]


def test_a_failed_fetch_comes_with_its_completion(rank: Rank) -> None:
    """In the same poll; the other blocks are loaded, those of failed keys are as they were."""
    stored = rank.stored_below(Tier.REMOTE, range(5), MIXED)
    del rank.data[name(key(1, 0))]
    rank.data[name(key(3, 2))] += b"x"
    before = [rank.content(chunk) for chunk in OTHERS]
    job = rank.load(range(5), OTHERS, remote=range(5))
    done: list[Done] = []
    wait_until("the load ends", lambda: done or done.__iadd__(rank.mover.outbox.poll()))
    assert [one.job_id for one in done] == [job]
    assert rank.mover.outbox.take_failed_requests() == {f"r{job}"}
    assert rank.mover.outbox.take_reports().failed == {100 + job: {1, 3}}
    assert rank.mover.outbox.take_failed_requests() == set()
    assert not rank.mover.outbox.take_reports().failed
    assert [rank.content(chunk) for chunk in OTHERS] == [before[n] if n in (1, 3) else stored[n] for n in range(5)]


def test_a_part_of_another_length_is_removed_from_the_store(rank: Rank) -> None:
    """Else the next write would be skipped because of it."""
    rank.stored_below(Tier.REMOTE, [0], [small(0, 1)])
    part = name(key(0, 1))
    rank.data[part] += b"x"
    rank.ended(rank.load([0], [small(0, 1)], remote=[0]))
    wait_until("it is removed", lambda: part not in rank.data)
    assert rank.writer.called("delete") == [[part]]


def test_a_part_that_was_damaged_in_the_store_is_removed(rank: Rank) -> None:
    """Found by its checksum, after the fetch."""
    rank.stored_below(Tier.REMOTE, [0], [small(0, 1)])
    part = name(key(0, 1))
    rank.data[part] = rank.data[part][:-1] + bytes([rank.data[part][-1] ^ 1])
    _, _, reports = rank.ended(job := rank.load([0], [small(0, 1)], remote=[0]))
    assert reports.failed == {100 + job: {0}}
    wait_until("it is removed", lambda: part not in rank.data)


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.FAILED])
def test_a_lost_store_fails_what_was_to_be_fetched(rank: Rank, outcome: Outcome) -> None:
    """And nothing else; nothing is removed because of it."""
    stored = rank.fill(small(0, 1))
    rank.ended(rank.store([0], [small(0, 1)]))
    rank.reader.outcome = outcome
    _, failed, reports = rank.ended(job := rank.load([0, 1], [small(5, 6), small(7, 8)], remote=[1]))
    assert (failed, reports.failed) == ({f"r{job}"}, {100 + job: {1}})
    assert rank.content(small(5, 6)) == stored
    assert rank.mover.outbox.outcomes[f"load {outcome.value}"] == 1
    assert rank.writer.called("delete") == []


@pytest.mark.parametrize("position", [0, 5, 20, 30, 45, 60, HEADER_BYTES, HEADER_BYTES + PAYLOAD[0] - 1])
def test_a_damaged_row_is_a_failure(rank: Rank, position: int) -> None:
    """Header or payload. The block stays as it was, and so does the store's copy, which nobody looked at."""
    chunks, others = MIXED[:2], OTHERS[:2]
    stored = [rank.fill(chunk) for chunk in chunks]
    rank.ended(rank.store([0, 1], chunks))
    rank.arena.part(0, PAYLOAD[0])[position] ^= 0x10
    before = rank.content(others[0])
    _, failed, reports = rank.ended(job := rank.load([0, 1], others))
    assert (failed, reports.failed) == ({f"r{job}"}, {100 + job: {0}})
    assert [rank.content(chunk) for chunk in others] == [before, stored[1]]
    assert rank.writer.called("delete") == []


def test_a_row_with_another_keys_bytes(alone: Rank) -> None:
    """A mistake in the bookkeeping of slots would not become wrong text."""
    alone.ended(alone.store([0], [MIXED[0]]))
    before = alone.content(OTHERS[0])
    alone.mover.load(99, Transfer(Kind.LOAD, 7, "r", (key(5, 0),), (0,)), [OTHERS[0]])
    _, failed, reports = alone.ended(99)
    assert (failed, reports.failed) == ({"r"}, {7: {0}})
    assert alone.content(OTHERS[0]) == before
    assert alone.mover.outbox.outcomes["load other name"] == 1


def test_wait_blocks_until_the_jobs_left_kv_memory_alone(rank: Rank) -> None:
    """Not for spills, and not for jobs that are unknown or over."""
    stuck, go, started = threading.Event(), threading.Event(), threading.Event()
    rank.writer.before = lambda verb: stuck.wait(10)
    rank.ended(job := rank.store([0], [small(0, 1)]))
    ticket = rank.spill(Tier.REMOTE, 0)
    rank.mover.wait({job, 999})

    def fetching(verb: str) -> None:
        started.set()
        go.wait(10)

    rank.reader.before = fetching
    slow = rank.load([1], [small(1, 2)], remote=[0])
    assert started.wait(PATIENCE_S)
    waiter = threading.Thread(target=lambda: rank.mover.wait({slow}))
    waiter.start()
    assert waiter.is_alive()
    go.set()
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive()
    stuck.set()
    rank.spilled(ticket)


# ---- verification ----------------------------------------------------------------------------------------------


def test_a_recomputed_block_that_is_the_cached_one(alone: Rank) -> None:
    """Nothing differs, and the row stays as it is."""
    alone.fill(MIXED[0])
    alone.ended(alone.store([0], [MIXED[0]]))
    before = alone.row(0)
    _, _, reports = alone.ended(alone.store([0], [MIXED[0]], compared=[0]))
    assert (reports.differed, reports.failed, alone.row(0)) == ({}, {}, before)
    assert alone.mover.outbox.outcomes["verified"] == 1


def test_a_recomputed_block_that_is_another_one(alone: Rank) -> None:
    """Reported under its position; the cached bytes stay, and what is new in the same job is stored."""
    cached = alone.fill(MIXED[0])
    alone.ended(alone.store([0], [MIXED[0]]))
    alone.fill(MIXED[0])
    new = alone.fill(MIXED[1])
    before = alone.row(0)
    _, _, reports = alone.ended(job := alone.store([3, 0], [MIXED[1], MIXED[0]], compared=[1]))
    assert (reports.differed, reports.failed, alone.row(0)) == ({100 + job: {1}}, {}, before)
    alone.ended(alone.load([0, 3], OTHERS[:2]))
    assert [alone.content(chunk) for chunk in OTHERS[:2]] == [cached, new]


def test_a_damaged_row_is_no_difference(alone: Rank) -> None:
    """Its checksum is for that: nothing wrong could have been loaded from it."""
    alone.fill(MIXED[0])
    alone.ended(alone.store([0], [MIXED[0]]))
    alone.arena.part(0, PAYLOAD[0])[HEADER_BYTES + 5] ^= 1
    alone.fill(MIXED[0])
    _, _, reports = alone.ended(alone.store([0], [MIXED[0]], compared=[0]))
    assert reports.differed == {}


def test_what_rounds_differently_is_the_same_block() -> None:
    """Compared as numbers of the KV cache's type."""
    with closing(Rank(dtype="float32")) as rank:
        chunk = small(0, 1)
        view = rank.memory[1][0].view(np.float32)
        view[:2] = np.linspace(-1, 1, view[:2].size, dtype=np.float32).reshape(view[:2].shape)
        rank.ended(rank.store([0], [chunk]))
        view[:2] *= np.float32(1 + 1e-5)
        assert rank.ended(rank.store([0], [chunk], compared=[0]))[2].differed == {}
        view[:2] *= np.float32(1.01)
        _, _, reports = rank.ended(job := rank.store([0], [chunk], compared=[0]))
        assert reports.differed == {100 + job: {0}}
