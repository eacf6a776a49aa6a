"""Threads that may run where there is room.

vLLM's CPU worker pins its main thread to one core before it loads a connector, and waits for work there in a loop of
``sched_yield`` (``SpinCondition`` in ``vllm/distributed/device_communicators/shm_broadcast.py``). A thread that it starts
inherits that core. Where a second engine's worker is pinned to the same core and waits in the same loop, Linux 6.18 was seen
to run nothing else there for ten seconds that is not of that engine's scheduling group (its session or cgroup): a store's
reply lay in its socket until the write's deadline had passed. On other cores our threads go on, as long as the worker's main
thread does not happen to hold the interpreter's lock while it waits for its core; against that, CPU engines need cores of
their own (docs/compatibility.md).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from kvpool_connector.log import get_logger

logger = get_logger(__name__)


def start(name: str, task: Callable[[], object]) -> threading.Thread:
    """A running thread of kvpool: a daemon, since none may keep the process from ending, on cores of its choice."""

    def run() -> None:
        with contextlib.suppress(OSError):  # for `top -H`; Python does so itself from 3.14 on
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(f"kvpool-{name}"[:15])
        try:
            if cores := wider(os.sched_getaffinity(0), _of_siblings(), _of_parent):
                os.sched_setaffinity(0, cores)
        except OSError as error:
            logger.warning(
                "thread %s stays on one core, where vLLM's waiting loop may keep it from running: %s", name, error
            )
        task()

    thread = threading.Thread(target=run, name=f"kvpool-{name}", daemon=True)
    thread.start()
    return thread


def wider(
    mine: Collection[int], of_siblings: Iterable[Collection[int]], of_parent: Callable[[], Collection[int]]
) -> set[int]:
    """Where a thread shall run that was born on ``mine``; empty: there.

    Only a single core is left: what is wider was chosen by someone who knows why, such as a NUMA node. The cores of the
    process's other threads are next, since somebody gave them to this process, then those of the process that started it.
    """
    if len(mine) != 1:
        return set()
    found = set(mine).union(*of_siblings)
    if len(found) == 1:
        found |= set(of_parent())
    return found if len(found) > 1 else set()


def _of_siblings() -> list[set[int]]:
    found: list[set[int]] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(os.sched_getaffinity(int(task.name)))
    return found


def _of_parent() -> set[int]:
    parent = os.getppid()  # 0: outside of the container, and 0 would mean this thread
    return os.sched_getaffinity(parent) if parent else set()
