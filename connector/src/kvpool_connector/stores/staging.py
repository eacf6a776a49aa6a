"""Memory through which values pass to and from a client whose calls may be given up and then still use it.

It has two halves, so that one is filled or emptied while a call uses the other: a batch goes in turns, each in the half that
the turn before it does not use.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
from collections.abc import Iterator, Sequence

HALF_BYTES = 8 << 20
"""Of a half, and so of one call. A larger value makes it grow."""
MOST_KEYS = 128
"""Of one call. Over TCP, Mooncake makes a connection for each value, and some thousand are more than a process may have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """Neighbours of a batch that one call moves."""

    part: slice
    """Which of the batch."""
    names: list[str]
    sizes: list[int]
    places: list[int]
    """Addresses."""
    views: list[memoryview]
    """The same, to copy from and to."""


class Staging:
    """Two halves, page-aligned, beginning at an address."""

    def __init__(self, half: int) -> None:
        self._half, self.size = half, 2 * half
        self._map = mmap.mmap(-1, self.size)
        self._view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def fits(self, sizes: Sequence[int]) -> bool:
        """Whether each value has room."""
        return max(sizes) <= self._half

    def turns(self, keys: Sequence[bytes], sizes: Sequence[int]) -> list[Turn]:
        """Where the values of a batch, which fit, are placed."""
        found: list[Turn] = []
        for part in _parts(sizes, self._half):
            begin, starts = self._half * (len(found) % 2), []
            for size in sizes[part]:
                starts.append(begin)
                begin += size
            found.append(
                Turn(
                    part,
                    list(map(name_of, keys[part])),
                    list(sizes[part]),
                    [self.address + start for start in starts],
                    [self._view[start : start + size] for start, size in zip(starts, sizes[part], strict=True)],
                )
            )
        return found


def name_of(key: bytes) -> str:
    """These clients' keys are text. A part's name is ASCII and stays as it is; any other byte is one character too."""
    return key.decode("latin-1")


def _parts(sizes: Sequence[int], most_bytes: int) -> Iterator[slice]:
    """As many neighbours as one call may have."""
    start = total = 0
    for position, size in enumerate(sizes):
        if position - start == MOST_KEYS or (position > start and total + size > most_bytes):
            yield slice(start, position)
            start, total = position, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))
