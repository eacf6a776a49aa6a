"""Starts of things that live on a disk, for whoever cannot wait for a disk that hangs.

No time can be named by which a start must have ended: preallocating a large slab takes minutes on some file systems. What
can be bounded is how long one step of it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kvpool_connector.config import ConfigError
from kvpool_connector.stores.caller import Caller

T = TypeVar("T")

STEP_S = 30.0
"""The longest that one step may take. A file system that needs longer to open a file cannot serve a cache."""

Beat = Callable[[], None]
"""Called after each step of a start."""


def started(folder: Path, make: Callable[[Beat], T], discard: Callable[[T], object]) -> T:
    """Return what ``make`` returns, or raise what it raises. It runs on a thread of its own.

    Args:
        folder: where it works, for the message.
        discard: called with what ``make`` returns after it was given up, on that thread.

    Raises:
        ConfigError: a step did not end within `STEP_S`; names ``tiers.disk.path``. The thread is left behind.
    """
    beats = [time.monotonic()]
    made: list[T] = []
    caller = Caller("start")
    call = caller.begin(lambda: made.append(make(lambda: beats.append(time.monotonic()))))
    caller.close()  # its thread ends after this call
    seen = 0.0
    while beats[-1] != seen:
        seen = beats[-1]
        if call.ends(seen + STEP_S):
            call.result(seen)
            return made[0]
    call.then(lambda: [discard(late) for late in made])
    raise ConfigError(
        f"tiers.disk.path: {folder} does not answer: a call to its file system has not returned for {STEP_S:.0f} s: "
        "see whether it is mounted and its server runs"
    )
