"""The write lane of one rank: puts parts into the remote store out of the arena, and removes damaged ones.

Best effort and bounded: what does not fit into the queue is dropped, and every put is reported exactly once, dropped or not,
because until then the scheduler keeps its slots pinned.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence

from kvpool_connector.log import get_logger
from kvpool_connector.stores import Outcome, Store
from kvpool_connector.transfer import Ticket
from kvpool_connector.worker.lanes import URGENT, Lane

logger = get_logger(__name__)

MAX_QUEUED_PUTS = 64
"""Puts of one job each; above this a put is dropped, and the scheduler is told so."""


class Putter:
    """Methods may be called from any thread; the store belongs to the lane."""

    def __init__(self, store: Store, put_s: float, outcomes: Counter[str]) -> None:
        """Connects at once: the first put should not wait for name and handshake.

        Args:
            put_s: the deadline of a put, all its keys together.
            outcomes: counts what happens to parts.
        """
        self._store, self._put_s, self._outcomes = store, put_s, outcomes
        self._ended: queue.SimpleQueue[tuple[Ticket, set[int]]] = queue.SimpleQueue()
        self._queued = 0
        self._lock = threading.Lock()  # guards _queued
        self._lane = Lane("write")
        self._lane.run(self._greet)

    def put(self, ticket: Ticket, names: Sequence[bytes], parts: Sequence[memoryview]) -> None:
        """Queue a put. The parts stay as they are until :meth:`take_ended` has named the ticket."""
        with self._lock:
            full = self._queued >= MAX_QUEUED_PUTS
            if not full:
                self._queued += 1
        if full:
            self._outcomes["put dropped"] += len(names)
            self.give_up(ticket, len(names))
        else:
            self._lane.run(lambda: self._put(ticket, names, parts))

    def give_up(self, ticket: Ticket, count: int) -> None:
        """Report a put that was never tried."""
        self._ended.put((ticket, set(range(count))))

    def remove(self, name: bytes) -> None:
        """Take a damaged part out of the store, so that the next put is not skipped because of it."""
        self._lane.run(lambda: self._remove(name), URGENT)

    def take_ended(self) -> list[tuple[Ticket, set[int]]]:
        """Puts that ended since the last call, each with the positions that are not in the store."""
        ended = []
        while not self._ended.empty():
            ended.append(self._ended.get())
        return ended

    @property
    def idle(self) -> bool:
        """No put is running or queued."""
        with self._lock:
            return not self._queued

    def close(self, timeout_s: float) -> bool:
        """Finish and end the lane. False if it still runs after the time-out."""
        ended = self._lane.close(timeout_s)
        self._store.close()
        return ended

    # ---- the lane ----------------------------------------------------------------------------------------

    def _greet(self) -> None:
        self._store.ping(time.monotonic() + self._put_s)

    def _put(self, ticket: Ticket, names: Sequence[bytes], parts: Sequence[memoryview]) -> None:
        missing = set(range(len(names)))
        try:
            missing = self._put_absent(names, parts)
        except Exception:
            logger.exception("a put failed")
        finally:
            with self._lock:
                self._queued -= 1
            self._ended.put((ticket, missing))

    def _put_absent(self, names: Sequence[bytes], parts: Sequence[memoryview]) -> set[int]:
        """Put the parts that the store does not have yet (another engine may have been first).

        Returns:
            positions that are not in the store now.
        """
        deadline = time.monotonic() + self._put_s
        outcomes = dict(enumerate(self._store.exists(names, deadline)))
        absent = [position for position, outcome in outcomes.items() if outcome is Outcome.MISS]
        put = self._store.put_from([names[p] for p in absent], [parts[p] for p in absent], deadline)
        outcomes.update(zip(absent, put, strict=True))
        self._outcomes.update(f"put {outcome.value}" for outcome in put)
        return {position for position, outcome in outcomes.items() if outcome is not Outcome.HIT}

    def _remove(self, name: bytes) -> None:
        (outcome,) = self._store.delete([name], time.monotonic() + self._put_s)
        self._outcomes[f"delete {outcome.value}"] += 1
