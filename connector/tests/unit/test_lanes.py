"""A lane: order, faults, end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from kvpool_connector.worker.lanes import NORMAL, URGENT, Lane
from testkit.patience import PATIENCE_S
from testkit.servers import wait_until


@pytest.fixture
def lane() -> Iterator[Lane]:
    """Ended by the fixture."""
    lane = Lane("test")
    yield lane
    assert lane.close(5)


def hold(lane: Lane) -> threading.Event:
    """Keep the lane busy until the event is set, so that what follows queues up."""
    started, go = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        assert go.wait(PATIENCE_S)

    lane.run(wait)
    assert started.wait(PATIENCE_S)
    return go


def test_urgent_first_else_in_order(lane: Lane) -> None:
    """A load does not wait behind stores that came before it."""
    done: list[str] = []
    go = hold(lane)
    for name, priority in (("a", NORMAL), ("b", NORMAL), ("X", URGENT), ("c", NORMAL), ("Y", URGENT)):
        lane.run(lambda name=name: done.append(name), priority)  # type: ignore[misc]
    go.set()
    wait_until("all ran", lambda: len(done) == 5)
    assert done == ["X", "Y", "a", "b", "c"]


def test_a_task_that_raises_is_logged_and_the_next_one_runs(lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback, under the lane's name."""
    ran = threading.Event()

    def fail() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        lane.run(fail)
        lane.run(ran.set)
        assert ran.wait(PATIENCE_S)
    assert "a task of kvpool-test failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_close_finishes_what_is_queued() -> None:
    """Then the thread is gone."""
    lane, done = Lane("closing"), list[int]()
    go = hold(lane)
    for number in range(100):
        lane.run(lambda number=number: done.append(number))  # type: ignore[misc]
    go.set()
    assert lane.close(5)
    assert done == list(range(100))
    assert not any(thread.name == "kvpool-closing" for thread in threading.enumerate())


def test_close_does_not_wait_for_ever() -> None:
    """It says that the thread still runs."""
    lane = Lane("stuck")
    go = hold(lane)
    assert not lane.close(0.05)
    go.set()
    assert lane.close(5)
