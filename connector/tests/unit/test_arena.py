"""Rows of host memory."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.format import HEADER_BYTES
from kvpool_connector.tiers.arena import ALIGNMENT, Arena, row_bytes_for
from testkit.patience import PATIENCE_S


@given(st.integers(0, 1 << 24))
def test_a_row_holds_header_and_payload_on_whole_pages(payload: int) -> None:
    """And not a page more."""
    row = row_bytes_for(payload)
    assert row % ALIGNMENT == 0
    assert 0 <= row - payload - HEADER_BYTES < ALIGNMENT


def test_rows_are_aligned_and_disjoint() -> None:
    """Each row filled with a number of its own, then all of them read."""
    arena = Arena(16, row_bytes_for(5000))
    assert arena.address % ALIGNMENT == 0
    for slot in range(16):
        arena.part(slot, arena.row_bytes - HEADER_BYTES)[:] = slot + 1
    for slot in range(16):
        part = arena.part(slot, arena.row_bytes - HEADER_BYTES)
        assert part.ctypes.data == arena.address + slot * arena.row_bytes
        assert np.all(part == slot + 1)
    arena.close()


def test_payload_is_behind_the_header_of_the_same_row() -> None:
    """Views of one memory, not copies."""
    arena = Arena(4, ALIGNMENT)
    arena.payload(2, 100)[:] = 7
    part = arena.part(2, 100)
    assert part.nbytes == HEADER_BYTES + 100
    assert np.all(part[HEADER_BYTES:] == 7)
    assert not part[:HEADER_BYTES].any()
    assert part.data.format == "B"
    assert not part.data.readonly
    arena.close()


def test_populate_keeps_contents(caplog: pytest.LogCaptureFixture) -> None:
    """It runs while rows are written, over more than one of its steps."""
    arena = Arena(10_000, ALIGNMENT)
    before = np.random.default_rng(1).integers(0, 256, (100, ALIGNMENT), np.uint8)
    for number in range(50):
        arena.part(number * 100, ALIGNMENT - HEADER_BYTES)[:] = before[number]
    with caplog.at_level(logging.INFO):
        arena.populate()
        for number in range(50, 100):
            arena.part(number * 100, ALIGNMENT - HEADER_BYTES)[:] = before[number]
        assert arena._populating is not None
        arena._populating.join(PATIENCE_S)
    assert not arena._populating.is_alive()
    assert "memory tier: " in caplog.text
    for number in range(100):
        assert np.array_equal(arena.part(number * 100, ALIGNMENT - HEADER_BYTES), before[number])
    arena.close()


def test_close_ends_the_thread() -> None:
    """Even right after the start; a second time it does nothing."""
    arena = Arena(20_000, ALIGNMENT)
    arena.populate()
    arena.close()
    arena.close()
    assert not any(thread.name == "kvpool-populate" for thread in threading.enumerate())


def test_views_outlive_the_arena() -> None:
    """A copy that is still running must not read unmapped memory."""
    arena = Arena(2, ALIGNMENT)
    view = arena.part(1, 10)
    arena.close()
    del arena
    view[:] = 3
    assert view.sum() == 3 * view.nbytes
