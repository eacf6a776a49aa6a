"""KV memory is host memory: plain copies.

A slice assignment runs at the speed of memcpy and releases the interpreter lock while it copies, but costs about a
microsecond to set up, which is what 12 KiB take to copy. vLLM lays the layers of a group out at equal distances
(``vllm/v1/kv_cache_interface.py``, ``KVCacheTensor``: ``offset + layer * layer_stride + block * block_stride``), so a block's
pages are one strided array, and one assignment moves them all: ``bench/copy.py`` measures it.

vLLM's CPU backend runs a step to its end before it calls the connector, so there is nothing to fence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from kvpool_connector.tiers.arena import Arena
from kvpool_connector.worker.device.base import Chunk, Row

Stack = npt.NDArray[np.uint8]
"""Pages of equal size at equal distances, shape (blocks, pages, bytes of a page that count)."""


class CpuDevice:
    """Copies between arrays."""

    def __init__(self, pages: Sequence[Sequence[tuple[npt.NDArray[np.uint8], int]]]) -> None:
        """Args:
        pages: per group, the layers' views of shape (blocks, bytes), bytes without gaps, and the bytes of a block that
            count.
        """
        self._pages = pages  # a stack holds on to the memory of its first page only
        self._stacks = [_stacks(group) for group in pages]
        self.block_bytes: Sequence[int] = [sum(size for _, size in group) for group in pages]

    def adopt(self, arena: Arena) -> None:
        """Nothing to do: host memory is host memory."""

    def fence(self) -> None:
        """Nothing to wait for."""

    def copy_out(self, chunks: Sequence[Chunk], rows: Sequence[Row], fence: object) -> None:
        """See :class:`Device`."""
        for pages, piece in self._pairs(chunks, rows):
            piece[:] = pages

    def copy_in(self, rows: Sequence[Row], chunks: Sequence[Chunk], fence: object) -> None:
        """See :class:`Device`."""
        for pages, piece in self._pairs(chunks, rows):
            pages[:] = piece

    def close(self) -> None:
        """Nothing to let go of."""

    def _pairs(self, chunks: Sequence[Chunk], rows: Sequence[Row]) -> Iterator[tuple[Stack, Stack]]:
        """Views of the same bytes in KV memory and in a row, shape (pages, bytes)."""
        for (group, first, blocks), row in zip(chunks, rows, strict=True):
            at = first * self.block_bytes[group]
            for block in blocks:
                for stack in self._stacks[group]:
                    pages = stack[block]
                    yield pages, row[at : at + pages.size].reshape(pages.shape)
                    at += pages.size


def _stacks(pages: Sequence[tuple[npt.NDArray[np.uint8], int]]) -> list[Stack]:
    """The fewest stacks that hold a group's pages in their order."""
    runs: list[list[tuple[npt.NDArray[np.uint8], int]]] = []
    for page in pages:
        if runs and _continues(runs[-1], *page):
            runs[-1].append(page)
        else:
            runs.append([page])
    return [_stack(run) for run in runs]


def _continues(run: Sequence[tuple[npt.NDArray[np.uint8], int]], view: npt.NDArray[np.uint8], size: int) -> bool:
    last, last_size = run[-1]
    alike = size == last_size and view.strides == last.strides and len(view) == len(last)
    return alike and (len(run) == 1 or view.ctypes.data - last.ctypes.data == _distance(run))


def _distance(run: Sequence[tuple[npt.NDArray[np.uint8], int]]) -> int:
    return 0 if len(run) == 1 else run[1][0].ctypes.data - run[0][0].ctypes.data


def _stack(run: Sequence[tuple[npt.NDArray[np.uint8], int]]) -> Stack:
    view, size = run[0]
    assert view.strides[1] == 1, view.strides
    return as_strided(view, (len(view), len(run), size), (view.strides[0], _distance(run), 1))
