"""A term: reconciling, from when this replica begins to lead until it does not any more.

Each term has a queue, workers and a reconciler of its own, so nothing that an earlier one remembered
is believed: another replica may have led in between. While there is none, nothing is queued: caches
hold all that a term begins with.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

from kvpool_operator.handlers.queue import WorkQueue
from kvpool_operator.handlers.workers import Reconcile, Workers
from kvpool_operator.observe.gather import PoolKey


class Terms:
    """Takes what watches tell of, and has it reconciled while a term lasts. One event loop."""

    def __init__(
        self,
        reconciler: Callable[[], Reconcile],
        known: Callable[[], Iterable[PoolKey]],
        *,
        count: int,
    ) -> None:
        """Take how a term is made.

        Args:
            reconciler: makes what reconciles a pool, once for each term.
            known: gives all pools that caches know, those that are gone and left something among them.
            count: of workers.
        """
        self._reconciler = reconciler
        self._known = known
        self._count = count
        self._queue: WorkQueue[PoolKey] | None = None
        self._workers: Workers | None = None

    def add(self, key: PoolKey, *, after: float = 0.0) -> None:
        """Have a pool looked at in ``after`` seconds, or leave it to the replica that leads."""
        if self._workers is not None:
            self._workers.add(key, after=after)

    def longest_in_hand(self) -> float:
        """Return the seconds that the slowest worker has been at its pool; 0 outside of a term."""
        return self._queue.longest_in_hand() if self._queue is not None else 0.0

    async def run(self) -> None:
        """Reconcile all pools, and then those that change, until cancelled."""
        self._queue = WorkQueue(clock=time.monotonic, random=random.random)
        self._workers = Workers(self._queue, self._reconciler(), count=self._count)
        try:
            for key in self._known():
                self._workers.add(key)
            await self._workers.run()
        finally:
            self._queue = None
            self._workers = None
