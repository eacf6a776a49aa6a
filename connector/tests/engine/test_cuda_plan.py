"""The GPU's copy plan, carried out on host memory: which bytes a batch would move. No GPU is needed."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

pytest.importorskip("torch")

from kvpool_connector.worker.device.base import Block, Page
from kvpool_connector.worker.device.cpu import CpuDevice
from kvpool_connector.worker.device.cuda import plan

BLOCKS = 8


def test_addresses() -> None:
    """By hand: two groups, one of two pages with a stride that is larger than the page."""
    pages = [[Page(1000, 100, 60), Page(5000, 40, 40)], [Page(9000, 8, 8)]]
    device, host, sizes = plan(pages, [(0, 2), (1, 3), (0, 0)], [70_000, 80_000, 90_000])
    assert device.tolist() == [1200, 5080, 9024, 1000, 5000]
    assert host.tolist() == [70_000, 70_060, 80_000, 90_000, 90_060]
    assert sizes.tolist() == [60, 40, 8, 60, 40]
    assert device.dtype == host.dtype == sizes.dtype == np.int64


def test_an_empty_batch() -> None:
    """A load of which every key failed."""
    assert [part.shape for part in plan([[Page(0, 1, 1)]], [], [])] == [(0,), (0,), (0,)]


def test_addresses_above_four_gigabytes() -> None:
    """As on any GPU."""
    device, _, _ = plan([[Page(0x7F00_0000_0000, 1 << 21, 4096)]], [(0, 100_000)], [0x7FFF_0000_0000])
    assert device.tolist() == [0x7F00_0000_0000 + 100_000 * (1 << 21)]


@pytest.mark.parametrize("into", [True, False])
def test_the_plan_moves_the_bytes_that_the_cpu_device_moves(into: bool) -> None:
    """Executed by memmove; packed layers share one tensor, as vLLM lays them out."""
    source = np.random.default_rng(3)
    packed = source.integers(0, 256, (BLOCKS, 300), np.uint8)
    plain = source.integers(0, 256, (BLOCKS, 64), np.uint8)
    views = [[(packed[:, :100], 100), (packed[:, 150:], 90)], [(plain, 60)]]
    pages = [[Page(view.ctypes.data, view.strides[0], size) for view, size in group] for group in views]
    blocks: list[Block] = [(0, 1), (1, 7), (0, 6), (1, 0)]
    reference = CpuDevice(views)
    rows = [source.integers(0, 256, reference.payload_bytes[group], np.uint8) for group, _ in blocks]

    before, rows_before = (packed.copy(), plain.copy()), [row.copy() for row in rows]
    if into:
        reference.copy_in(rows, blocks, None)
    else:
        reference.copy_out(blocks, rows, None)
    expected = [packed.copy(), plain.copy(), *(row.copy() for row in rows)]
    packed[:], plain[:] = before
    for row, was in zip(rows, rows_before, strict=True):
        row[:] = was

    device, host, sizes = plan(pages, blocks, [row.ctypes.data for row in rows])
    for at, row_at, size in zip(device.tolist(), host.tolist(), sizes.tolist(), strict=True):
        ctypes.memmove(*((at, row_at) if into else (row_at, at)), size)
    assert all(np.array_equal(was, now) for was, now in zip(expected, [packed, plain, *rows], strict=True))
    assert not np.array_equal(packed, before[0]) or not into
