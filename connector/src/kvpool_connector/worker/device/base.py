"""What the mover needs from a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kvpool_connector.tiers.arena import Arena

Row = npt.NDArray[np.uint8]
"""A payload in the arena, shape (payload bytes,): the blocks of a chunk one after the other."""


class Chunk(NamedTuple):
    """The KV memory of one part: a run of blocks."""

    group: int
    """Index of the KV group among the offloaded ones."""
    first: int
    """Place of the first block in the chunk; not 0 where vLLM holds the blocks before it already."""
    blocks: tuple[int, ...]
    """vLLM's block ids."""


@dataclasses.dataclass(frozen=True)
class Page:
    """One layer's (or packed layers') memory for a group: block b begins at ``address + b * stride``."""

    address: int
    stride: int
    size: int
    """Bytes of a block that count; the rest of the stride is padding or another layer."""


class Device(Protocol):
    """Copies whole blocks. ``copy_*`` run on the copy lane and return when the bytes are in place."""

    @property
    def block_bytes(self) -> Sequence[int]:
        """Bytes of a block, per group: the sum of its pages."""

    def adopt(self, arena: Arena) -> None:
        """Prepare the arena's memory for copies (registration with the driver), where that matters.

        Raises:
            TimeoutError: the driver did not return in time.
        """

    def fence(self) -> object:
        """Called on vLLM's thread when a job is submitted. A copy given this value starts after all work on KV memory that
        was queued before."""

    def copy_out(self, chunks: Sequence[Chunk], rows: Sequence[Row], fence: object) -> None:
        """KV memory to rows."""

    def copy_in(self, rows: Sequence[Row], chunks: Sequence[Chunk], fence: object) -> None:
        """Rows to KV memory."""

    def close(self) -> None:
        """Let go of the arena. No copy is running."""
