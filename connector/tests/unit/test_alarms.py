"""Times at which something has to happen."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from kvpool_connector.worker.alarms import Alarms
from testkit.patience import PATIENCE_S, promptly


@pytest.fixture
def alarms() -> Iterator[Alarms]:
    """Closed at the end."""
    it = Alarms()
    yield it
    it.close()


def test_each_at_its_time(alarms: Alarms) -> None:
    """Whatever the order in which they were set; none before its time."""
    rang: queue.Queue[tuple[str, float]] = queue.Queue()
    now = time.monotonic()
    times = {"third": now + 0.15, "first": now - 1, "second": now + 0.05}
    for name, when in times.items():
        alarms.at(when, lambda name=name: rang.put((name, time.monotonic())))  # type: ignore[misc]
    with promptly(0.3):
        order = [rang.get(timeout=PATIENCE_S) for _ in times]
    assert [name for name, _ in order] == ["first", "second", "third"]
    assert all(at >= times[name] for name, at in order)


def test_an_earlier_one_is_not_behind_a_later_one(alarms: Alarms) -> None:
    """The thread waits for the later one when the earlier one is set."""
    rang = threading.Event()
    alarms.at(time.monotonic() + 600, lambda: None)
    with promptly(0.3):
        alarms.at(time.monotonic() + 0.02, rang.set)
        assert rang.wait(PATIENCE_S)


def test_the_end_forgets_what_is_not_due() -> None:
    """It waits for nothing."""
    alarms = Alarms()
    alarms.at(time.monotonic() + 600, lambda: pytest.fail("it was not due"))
    with promptly(0.3):
        alarms.close()
