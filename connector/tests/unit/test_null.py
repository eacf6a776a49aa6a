"""A rank whose mover could not be made."""

from __future__ import annotations

import pytest

from kvpool_connector.transfer import Kind, Orders, Probe, Reports, Spill, Tier, Transfer
from kvpool_connector.worker.null import NullMover


@pytest.fixture
def mover() -> NullMover:
    """That said why already."""
    it = NullMover("no memory")
    assert it.outbox.take_reports() == Reports(broken="no memory")
    return it


def test_every_job_ends_at_once_and_failed(mover: NullMover) -> None:
    """vLLM hears of a success; of loads it hears which request to compute."""
    mover.store(1, Transfer(Kind.STORE, 11, "w", (b"a", b"b"), (0, 1)), [])
    mover.load(2, Transfer(Kind.LOAD, 12, "r", (b"c",), (2,), from_remote=(0,)), [])
    mover.wait({1, 2})
    assert [done.job_id for done in mover.outbox.poll()] == [1, 2]
    assert mover.outbox.take_failed_requests() == {"r"}
    assert mover.outbox.take_reports() == Reports(failed={11: {0, 1}, 12: {0}}, lost={11: {0, 1}, 12: {0}})


def test_every_spill_is_reported_as_not_written(mover: NullMover) -> None:
    """Else its rows would stay pinned for ever. Nobody waits for probes."""
    spills = (Spill(7, Tier.DISK, (b"a", b"b"), (0, 1), (3, 4)), Spill(8, Tier.REMOTE, (b"a",), (0,)))
    mover.order(Orders(spills, (Probe(Tier.DISK, b"a"),)))
    mover.outbox.poll()
    assert mover.outbox.take_reports() == Reports(spilled={7: [{0, 1}], 8: [{0}]})


def test_nothing_is_reported_twice(mover: NullMover) -> None:
    """And nothing is left to wait for."""
    mover.load(2, Transfer(Kind.LOAD, 12, "r", (b"c",), (2,)), [])
    mover.outbox.poll()
    mover.outbox.take_failed_requests()
    mover.outbox.take_reports()
    assert (mover.outbox.poll(), mover.outbox.take_failed_requests(), mover.outbox.take_reports()) == (
        [],
        set(),
        Reports(),
    )
    assert mover.idle
    mover.close()
