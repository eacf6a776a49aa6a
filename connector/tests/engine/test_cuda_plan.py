"""The GPU's copy plan, by hand: which addresses a batch names. Its bytes are checked in `test_cuda_device`."""

from __future__ import annotations

import numpy as np

from kvpool_connector.worker.device.base import Chunk, Page
from kvpool_connector.worker.device.cuda import plan


def test_neighbours_become_one_piece() -> None:
    """By hand: a packed page, whose blocks follow each other; two pages, whose blocks do so on one side only; two pages
    that follow each other within a block."""
    packed, layers, side = (
        [Page(1000, 100, 100)],
        [Page(5000, 40, 40), Page(7000, 40, 40)],
        [Page(0, 50, 20), Page(20, 50, 30)],
    )
    chunks = [Chunk(0, 1, (2, 3, 5)), Chunk(1, 0, (0, 1)), Chunk(2, 0, (7, 8, 1))]
    device, host, sizes = plan([packed, layers, side], chunks, [70_000, 80_000, 90_000])
    assert device.tolist() == [1200, 1500, 5000, 7000, 5040, 7040, 350, 50]
    assert host.tolist() == [70_100, 70_300, 80_000, 80_040, 80_080, 80_120, 90_000, 90_100]
    assert sizes.tolist() == [200, 100, 40, 40, 40, 40, 100, 50]
    assert device.dtype == host.dtype == sizes.dtype == np.int64


def test_padding_is_not_copied() -> None:
    """A page that is shorter than its stride is never one with the next block's."""
    _, _, sizes = plan([[Page(0, 64, 60)]], [Chunk(0, 0, (0, 1, 2))], [1 << 20])
    assert sizes.tolist() == [60, 60, 60]


def test_addresses_above_four_gigabytes() -> None:
    """As on any GPU."""
    device, host, _ = plan([[Page(0x7F00_0000_0000, 1 << 21, 4096)]], [Chunk(0, 3, (100_000,))], [0x7FFF_0000_0000])
    assert device.tolist() == [0x7F00_0000_0000 + 100_000 * (1 << 21)]
    assert host.tolist() == [0x7FFF_0000_0000 + 3 * 4096]


def test_a_group_without_layers() -> None:
    """As a pipeline stage may have."""
    assert [part.tolist() for part in plan([[], [Page(8, 4, 4)]], [Chunk(1, 0, (1,))], [64])] == [[12], [64], [4]]
