"""Memory that a store's client knows as a whole, so that it moves values straight from and to the buffers in it."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
from collections.abc import Sequence


def address_of(buffer: memoryview) -> int:
    """Of its first byte; 0 if it is empty. The buffer is writable."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if buffer else 0


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """The arena of a rank, or what holds the one value of a client."""

    view: memoryview
    """All of it: bytes, writable."""
    most_lent: int
    """Buffers of one read, at most: so many can be replaced while a call that was given up may still write into them."""

    @classmethod
    def holding(cls, value: bytes) -> Memory:
        """Memory of one value, for a client that puts nothing else."""
        view = memoryview(mmap.mmap(-1, len(value)))
        view[:] = value
        return cls(view, 1)

    def places(self, buffers: Sequence[memoryview]) -> list[int]:
        """The address of each buffer; of one that is empty, any.

        Raises:
            ValueError: one lies elsewhere, where the client cannot reach it.
        """
        first = address_of(self.view)
        last, places = first + len(self.view), [address_of(buffer) or first for buffer in buffers]
        if any(not first <= place <= last - len(buffer) for place, buffer in zip(places, buffers, strict=True)):
            raise ValueError("a buffer lies outside of the memory that the store's client knows")
        return places
