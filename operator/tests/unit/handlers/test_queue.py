"""The work queue with a clock that only tests turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_operator.handlers.queue import LONGEST_BACKOFF, WorkQueue


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock=clock, random=lambda: 1.0)


def test_a_key_is_handed_out_once(queue: WorkQueue[str]) -> None:
    for _ in range(3):
        queue.add("a")
    assert queue.take() == "a"
    assert queue.take() is None


def test_keys_come_in_the_order_they_were_due(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("late", after=5)
    queue.add("soon", after=1)
    queue.add("now")
    assert (queue.take(), queue.take()) == ("now", None)
    clock.now += 5
    assert [queue.take(), queue.take(), queue.take()] == ["soon", "late", None]


def test_an_earlier_time_wins_and_a_later_one_does_not(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a", after=10)
    queue.add("a", after=1)
    queue.add("a", after=20)
    clock.now += 1
    assert queue.take() == "a"
    queue.done("a")
    clock.now += 100
    assert queue.take() is None


def test_a_key_added_while_in_hand_comes_again_but_never_twice_at_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    assert queue.take() is None
    queue.done("a")
    assert queue.take() == "a"


def test_a_key_in_hand_does_not_hold_up_others(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.take()
    queue.add("a")
    queue.add("b")
    assert queue.take() == "b"


def test_failures_wait_longer_each_time_up_to_a_limit(queue: WorkQueue[str], clock: Clock) -> None:
    delays = []
    for _ in range(14):
        queue.add("a")
        assert queue.take() == "a"
        delays.append(queue.failed("a"))
        clock.now += LONGEST_BACKOFF
        assert queue.take() == "a"
        queue.failed("a")
        clock.now += LONGEST_BACKOFF
    assert delays[:3] == [0.5, 2.0, 8.0]
    assert delays[-1] == LONGEST_BACKOFF


def test_success_forgets_failures(queue: WorkQueue[str]) -> None:
    for _ in range(5):
        queue.add("a")
        queue.take()
        queue.failed("a")
    queue.add("a")
    queue.take()
    queue.done("a")
    queue.add("a")
    queue.take()
    assert queue.failed("a") == 0.5


def test_chance_spreads_the_second_half_of_the_delay(clock: Clock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock=clock, random=lambda: 0.0)
    queue.add("a")
    queue.take()
    assert queue.failed("a") == 0.25


def test_waiting_time(queue: WorkQueue[str], clock: Clock) -> None:
    assert queue.wait_for() is None
    queue.add("a", after=7)
    assert queue.wait_for() == 7
    clock.now += 9
    assert queue.wait_for() == 0
    assert queue.take() == "a"
    queue.add("a")
    assert queue.wait_for() is None  # in hand: whoever has it wakes the others
    clock.now += 4
    assert queue.longest_in_hand() == 4


def test_a_later_look(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add("a")
    queue.take()
    queue.done("a", again_after=10)
    assert queue.take() is None
    clock.now += 10
    assert queue.take() == "a"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "take", "done", "failed", "tick"]))))
def test_no_key_is_ever_lost_or_in_two_hands(steps: list[tuple[str, str]]) -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock=clock, random=lambda: 0.5)
    pending: set[str] = set()
    held: set[str] = set()
    for key, step in steps:
        if step == "add":
            queue.add(key)
            pending.add(key)
        elif step == "tick":
            clock.now += 1000
        elif step == "take":
            taken = queue.take()
            assert (taken is None) or (taken in pending and taken not in held)
            if taken is not None:
                pending.remove(taken)
                held.add(taken)
        elif key in held:
            held.remove(key)
            if step == "done":
                queue.done(key)
            else:
                queue.failed(key)
                pending.add(key)
    clock.now += 1000
    for key in list(held):
        queue.done(key)
    drained = set()
    while (taken := queue.take()) is not None:
        drained.add(taken)
    assert drained == pending
