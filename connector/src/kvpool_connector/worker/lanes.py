"""A lane: one thread that runs tasks, the urgent ones first.

A lane owns what its tasks touch (a connection, the right to copy KV memory), so that nothing there needs a lock.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable

from kvpool_connector import threads
from kvpool_connector.log import get_logger

logger = get_logger(__name__)

URGENT, NORMAL = 0, 1
_END = 2


class Lane:
    """Tasks run one after the other. A task must not raise; one that does is logged and lost."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._thread = threads.start(name, self._serve)

    def run(self, task: Callable[[], None], priority: int = NORMAL) -> None:
        """Queue a task; tasks of one priority run in the order in which they came."""
        self._tasks.put((priority, next(self._order), task))

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued and end. False if the thread still runs after the time-out."""
        self._tasks.put((_END, next(self._order), self._ended))
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _ended(self) -> None:
        raise SystemExit

    def _serve(self) -> None:
        while True:
            _, _, task = self._tasks.get()
            try:
                task()
            except SystemExit:
                return
            except Exception:
                logger.exception("a task of %s failed", threading.current_thread().name)
