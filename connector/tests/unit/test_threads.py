"""Where threads of kvpool run."""

from __future__ import annotations

import errno
import logging
import os
import threading

import pytest

from kvpool_connector import threads
from testkit.patience import PATIENCE_S


@pytest.mark.parametrize(
    ("mine", "of_siblings", "of_parent", "found"),
    [
        ({0}, [{0}, {1}, {2}], {0, 1, 2, 3}, {0, 1, 2}),  # vLLM's CPU worker: a computing thread on each core
        ({0}, [{0}, {0}], {0, 1, 2, 3}, {0, 1, 2, 3}),  # one computing thread
        ({0, 1}, [{0, 1}, {0, 1, 2, 3}], {0, 1, 2, 3}, set()),  # bound to a node by someone who knows why
        ({0}, [{0}], {0}, set()),  # a container with one core
        ({0}, [{0}], set(), set()),  # nobody to ask
    ],
)
def test_a_thread_leaves_a_single_core_only(
    mine: set[int], of_siblings: list[set[int]], of_parent: set[int], found: set[int]
) -> None:
    """The cores of the process's other threads, else those of the process that started it."""
    assert threads.wider(mine, of_siblings, lambda: of_parent) == found


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: there is nowhere to go")
def test_a_thread_that_is_started_from_a_pinned_one_is_not_pinned() -> None:
    """Through the kernel; this test's main thread is the sibling that has all cores."""
    everything, seen = os.sched_getaffinity(0), []

    def pinned() -> None:
        os.sched_setaffinity(0, {min(everything)})
        threads.start("test", lambda: seen.append(os.sched_getaffinity(0))).join(PATIENCE_S)
        seen.append(os.sched_getaffinity(0))

    parent = threading.Thread(target=pinned)
    parent.start()
    parent.join(PATIENCE_S)
    assert seen == [everything, {min(everything)}]


def test_a_thread_that_may_not_leave_its_core_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that is slow for this reason must not be a riddle."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    ran: list[bool] = []
    with caplog.at_level(logging.WARNING):
        threads.start("test", lambda: ran.append(True)).join(PATIENCE_S)
    assert ran
    assert "thread test stays on one core" in caplog.text
