"""Times at which something has to happen, whatever the lanes are doing then."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from kvpool_connector import threads


class Alarms:
    """One thread that calls functions at their times. They are short and do not raise."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()  # guards _due and _ending
        self._ending = False
        self._thread = threads.start("alarms", self._serve)

    def at(self, when: float, what: Callable[[], object]) -> None:
        """Call ``what`` when ``time.monotonic()`` is ``when``. From any thread."""
        with self._changed:
            heapq.heappush(self._due, (when, next(self._order), what))
            self._changed.notify()

    def close(self) -> None:
        """End the thread. What is not due yet is forgotten."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while (what := self._next()) is not None:
            what()

    def _next(self) -> Callable[[], object] | None:
        """Wait for the next function that is due; None at the end."""
        with self._changed:
            while not self._ending:
                left = self._due[0][0] - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(left)
            return None
