"""Workers: take a key, reconcile it, give it back. A failure of one pool is that pool's alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from kvpool_operator.handlers.queue import WorkQueue
from kvpool_operator.kube import ApiError
from kvpool_operator.observe.gather import PoolKey

_log = logging.getLogger(__name__)
Reconcile = Callable[[PoolKey], Awaitable[float | None]]


class Workers:
    """A fixed number of them over one queue."""

    def __init__(self, queue: WorkQueue[PoolKey], reconcile: Reconcile, *, count: int) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._count = count
        self._wake = asyncio.Event()

    def add(self, key: PoolKey, *, after: float = 0.0) -> None:
        """The pool may have changed; look at it in ``after`` seconds, or when it is due anyway."""
        self._queue.add(key, after=after)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; then what is in hand is cancelled too, which is safe: the next term begins anew."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._count):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = self._queue.take()
            if key is None:
                await self._sleep()
            else:
                await self._one(key)
                self._wake.set()  # whoever sleeps may wait for this very key

    async def _one(self, key: PoolKey) -> None:
        try:
            again = await self._reconcile(key)
        except ApiError as error:
            delay = self._queue.failed(key)
            _log.warning("%s/%s: %s; again in %.1f s", *key, error.message, delay)
        except Exception:
            delay = self._queue.failed(key)
            _log.exception("%s/%s: a fault of the operator; again in %.1f s", *key, delay)
        else:
            self._queue.done(key, again_after=again)

    async def _sleep(self) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(self._queue.wait_for()):
                await self._wake.wait()
        except TimeoutError:
            return
