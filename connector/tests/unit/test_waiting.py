"""Requests that were told to come back: what they are told until something changes."""

from __future__ import annotations

import pytest

from kvpool_connector.scheduler.waiting import WaitingRequests


@pytest.fixture
def waiting() -> WaitingRequests:
    """One request that was told to come back in the step before."""
    it = WaitingRequests()
    it.add("r")
    it.next_step()
    return it


def test_a_scan_goes_on_to_its_end() -> None:
    """In the step of the first answer: more keys may need asking."""
    it = WaitingRequests()
    it.add("r")
    assert it.cut_short("r", b"0") is None
    it.add("r")
    assert it.cut_short("r", b"1") is None


def test_a_later_scan_is_cut_short_once_per_group_and_step(waiting: WaitingRequests) -> None:
    """RETRY, then MISS."""
    for _ in range(2):
        for group in (b"0", b"1"):
            assert [waiting.cut_short("r", group) for _ in range(3)] == [True, False, False]
        waiting.next_step()


def test_a_change_is_a_reason_to_scan_again(waiting: WaitingRequests) -> None:
    """Once: who is told to come back anew waits for the next change."""
    waiting.changed()
    assert waiting.cut_short("r", b"0") is None
    assert not waiting
    waiting.add("r")
    assert waiting.cut_short("r", b"0") is None
    waiting.next_step()
    assert waiting.cut_short("r", b"0") is True


def test_a_change_in_the_step_of_the_scan_is_not_lost() -> None:
    """It may have come after the key it matters to."""
    it = WaitingRequests()
    it.add("r")
    it.changed()
    it.add("r")
    it.next_step()
    assert it.cut_short("r", b"0") is None


def test_requests_do_not_know_each_other(waiting: WaitingRequests) -> None:
    """One's wait is not another's."""
    assert waiting.cut_short("other", b"0") is None
    waiting.add("other")
    assert waiting.cut_short("r", b"0") is True
    assert waiting.cut_short("other", b"0") is None


def test_a_finished_request_is_forgotten(waiting: WaitingRequests) -> None:
    """Also one that is not known."""
    assert waiting
    waiting.forget("r")
    waiting.forget("r")
    assert not waiting
    assert waiting.cut_short("r", b"0") is None
