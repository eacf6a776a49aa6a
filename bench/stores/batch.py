"""Values in resident memory of whole pages, as in the connector's arena, and calls that must succeed."""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Sequence

from kvpool_connector.stores import Outcome

MIB = 1 << 20


def values(size: int, count: int) -> tuple[list[bytes], list[memoryview]]:
    """Names and noise of ``size`` bytes each, resident."""
    memory, source = memoryview(mmap.mmap(-1, size * count)), random.Random(size)  # noqa: S311 - noise
    rows = [memory[number * size : (number + 1) * size] for number in range(count)]
    for row in rows:
        row[:] = source.randbytes(size)
    return [b"bench-%d-%d" % (size, number) for number in range(count)], rows


def soon() -> float:
    """A deadline that is not met by a hang."""
    return time.monotonic() + 30


def all_hit(outcomes: Sequence[Outcome]) -> None:
    """Raises:
    RuntimeError: a call that was timed did not do its work.
    """
    if set(outcomes) != {Outcome.HIT}:
        raise RuntimeError(f"the store fails: {outcomes}")
