"""What a person sees while a cluster is made: one line per step with the seconds since the command began.

Lines go to standard error, so that the output of `env` and `volumes` can be read by a program.
`ClusterError` carries one sentence for a person: what is wrong and, where there is one, the remedy.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT_SECONDS = 15.0
POLL_SECONDS = 0.1


class ClusterError(Exception):
    """The cluster cannot be had; the message is one sentence that a person can act on."""


class Progress:
    """Prints steps; one object per command, so that all its lines count from the same moment."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Print one finished step."""
        print(f"{time.monotonic() - self._began:7.1f} s  {text}", file=sys.stderr, flush=True)

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Announce something slow and say every 15 seconds that it still runs."""
        began = time.monotonic()
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                self.say(f"{what}: {time.monotonic() - began:.0f} s so far")

        thread = threading.Thread(target=beat, daemon=True)
        self.say(f"{what} ...")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        self.say(f"{what}: done in {time.monotonic() - began:.1f} s")


def wait_for(
    seconds: float, what: str, probe: Callable[[], bool], give_up: Callable[[], str | None] | None = None
) -> None:
    """Poll `probe` until it is true; fail after `seconds`, or at once when `give_up` names a reason."""
    deadline = time.monotonic() + seconds
    while not probe():
        reason = give_up() if give_up else None
        if reason:
            raise ClusterError(f"{what} will not come: {reason}")
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} was not there after {seconds:.0f} s")
        time.sleep(POLL_SECONDS)


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log file, for an error message."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-count:])
