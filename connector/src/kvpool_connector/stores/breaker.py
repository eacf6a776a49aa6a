"""A circuit breaker: a store that fails is left alone for a while, then probed by one caller.

Source of the pattern: M. Nygard, "Release It!". The delay doubles from ``first_s`` to ``longest_s``; jitter keeps the
engines of a pool from probing a returning store in step.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from kvpool_connector.stores.backoff import Backoff


class Breaker:
    """Shared by the lanes of one process that talk to one store; every method may be called from any thread."""

    def __init__(
        self,
        first_s: float = 0.25,
        longest_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._clock, self._jitter = clock, jitter
        self._lock = threading.Lock()
        self._delay_s = first_s
        self._closed = True
        self._probe_at = 0.0
        self._elsewhere = Backoff()
        self.moves = 0
        """Rises when all connections are to be made anew: their address may lead to another server now."""

    @property
    def closed(self) -> bool:
        """True while calls go through."""
        return self._closed

    def allow(self) -> bool:
        """Whether to try. While open, one caller per delay is let through as a probe."""
        with self._lock:
            if self._closed:
                return True
            now = self._clock()
            if now < self._probe_at:
                return False
            self._probe_at = now + self._delay_s  # the next probe, should this caller never report
            return True

    def elsewhere(self) -> None:
        """A server answered that is not, or not any more, the one to talk to. Connections are made anew at growing intervals
        while that goes on."""
        with self._lock:
            self.moves += self._elsewhere.due(self._clock())

    def succeeded(self) -> bool:
        """The store answered. Returns True if that closed the breaker."""
        with self._lock:
            was_open, self._closed = not self._closed, True
            self._delay_s = self._first_s
            return was_open

    def failed(self) -> bool:
        """The store did not answer. Returns True if that opened the breaker."""
        with self._lock:
            opened, self._closed = self._closed, False
            self._probe_at = self._clock() + self._delay_s * (0.75 + 0.5 * self._jitter())
            self._delay_s = min(self._delay_s * 2, self._longest_s)
            return opened
