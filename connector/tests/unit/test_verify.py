"""Which requests are computed although they hit."""

from __future__ import annotations

from kvpool_connector.scheduler.verify import Verification


def test_one_in_so_many_is_picked() -> None:
    """By requests, not by keys."""
    it = Verification(3)
    picks = [[it.picks(f"r{n}") for _ in range(4)] for n in range(6)]
    assert picks == [[False] * 4, [False] * 4, [True] * 4] * 2


def test_one_in_one_is_all() -> None:
    """For a test of a new kind of hardware, say."""
    it = Verification(1)
    assert all(it.picks(f"r{n}") for n in range(5))


def test_a_request_that_never_hit_is_not_picked() -> None:
    """There is nothing to compare with, and it does not count."""
    it = Verification(1)
    assert not it.is_picked("r")
    assert it._picked == {}


def test_a_finished_request_is_forgotten() -> None:
    """Its id may come again, and is another request then."""
    it = Verification(2)
    assert [it.picks("r0"), it.picks("r1")] == [False, True]
    assert it.is_picked("r1")
    it.forget("r1")
    it.forget("unknown")
    assert not it.is_picked("r1")
    assert not it.picks("r1")  # the third hit
