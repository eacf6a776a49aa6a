"""The fence: until when this process may write to the API server.

The elector moves it, and the client asks it directly before the bytes of a write leave the process.
A process that was stopped for a while finds it closed when it goes on, whatever it was about to do.
One event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kvpool_operator.kube.errors import NotLeading

_SENDING = ("send_request_headers.started", "send_request_body.started")
"""Ends of the names of moments at which bytes of a request are about to leave the process."""


def boot_clock() -> float:
    """Return seconds on a clock that nobody sets and that goes on while the machine sleeps.

    ``time.monotonic`` stands still while a machine is suspended, and a Lease does not.
    Source: clock_gettime(2).
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Fence:
    """Holds the moment at which this process has to have stopped writing. Closed at first."""

    def __init__(self, clock: Callable[[], float] = boot_clock) -> None:
        """Take the clock on which that moment is measured, in seconds."""
        self._clock = clock
        self._until = float("-inf")

    def extend(self, until: float) -> None:
        """Let writes pass until this moment of the clock, if it is later than the present one."""
        self._until = max(self._until, until)

    def close(self) -> None:
        """Let no write pass from now on."""
        self._until = float("-inf")

    def remaining(self) -> float:
        """Return the seconds for which writes pass; 0 where none does."""
        return max(0.0, self._until - self._clock())

    def is_open(self) -> bool:
        """Return whether a write would pass now."""
        return self._clock() < self._until

    def check(self) -> None:
        """Pass, or raise.

        Raises:
            NotLeading: the fence is closed.
        """
        if not self.is_open():
            raise NotLeading

    async def at_sending(self, event: str, _: Any) -> None:
        """Check once more where bytes are about to be sent: a request may have waited for a connection.

        The HTTP client calls this on a request's way (https://www.encode.io/httpcore/extensions/#trace).
        What it raises ends the request, and the connection where a part of it was sent: no API server
        carries out half a request.

        Raises:
            NotLeading: the fence is closed.
        """
        if event.endswith(_SENDING):
            self.check()
