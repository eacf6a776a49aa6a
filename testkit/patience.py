"""How long tests wait, in one place; and how they judge that something is prompt on a machine that may be busy.

Source of the idea: a control that is measured in the same run. A process that does nothing but take short naps is late by what
the machine gave to others or took away, and by nothing else.
"""

from __future__ import annotations

import atexit
import functools
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 45.0
"""Seconds that a test waits for anything before it fails. Far more than an idle machine needs: a host may be slow or busy, and
who waits for a condition loses nothing by it. Only what is known to take longer says so itself."""

_NAP_S = 0.005
_USUAL_S = 0.001
"""Naps are late by so much where nobody else wants the core."""
_WEIGHT = 8
"""Who wakes up gets a core sooner than who computes: the control sees a part of what the others wait for."""
_LAYOUT = struct.Struct("dd")
_NAPPER = f"""
import mmap, os, struct, sys, time
with open(sys.argv[1], "r+b") as file:
    shared = mmap.mmap(file.fileno(), {_LAYOUT.size})
late, woke = 0.0, time.monotonic()
while os.getppid() == int(sys.argv[2]):
    shared[:] = struct.pack("dd", late, woke)
    time.sleep({_NAP_S})
    now = time.monotonic()
    late, woke = late + max(0.0, now - woke - {_NAP_S + _USUAL_S}), now
"""


@contextmanager
def promptly(seconds: float) -> Iterator[None]:
    """Around what has to end within so many seconds, on a machine that others leave alone.

    Raises:
        AssertionError: it took longer, and by more than the machine was late meanwhile.
    """
    control = _control()
    before, began = _late(control), time.monotonic()
    yield
    took, late = time.monotonic() - began, _late(control) - before
    assert took < seconds + _WEIGHT * late, (
        f"{took:.3f} s and not {seconds:g}, of which the machine was late {late:.3f} s"
    )


def _late(control: mmap.mmap) -> float:
    """Seconds, since the control began: of all naps that ended, and of the one that should have."""
    late, woke = _LAYOUT.unpack(control[: _LAYOUT.size])
    return float(late + max(0.0, time.monotonic() - woke - _NAP_S - _USUAL_S))


@functools.cache
def _control() -> mmap.mmap:
    """Starts the napping process, once; it ends with this one."""
    with tempfile.TemporaryFile() as file:
        file.truncate(_LAYOUT.size)
        shared = mmap.mmap(file.fileno(), _LAYOUT.size)
        place, parent = f"/proc/{os.getpid()}/fd/{file.fileno()}", str(os.getpid())
        process = subprocess.Popen([sys.executable, "-S", "-c", _NAPPER, place, parent])
        atexit.register(_end, process)
        while not any(shared[: _LAYOUT.size]):
            assert process.poll() is None
            time.sleep(0.001)
    return shared


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


STORE_TIMEOUTS = {"lookup_ms": 10_000, "fetch_ms": 60_000, "put_ms": 60_000, "connect_ms": 30_000, "stall_ms": 30_000}
"""``remote.timeouts`` of a test that is not about them. Where other work keeps the cores busy, a
server that is well may send nothing for longer than the 250 ms after which it is given up by default."""
