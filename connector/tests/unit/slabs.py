"""Slabs of tests: eight rows of three pages, filled with parts that can be told apart."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kvpool_connector.format import HEADER_BYTES, Verdict, check, part_name, seal
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import PAGE, Slab

IDENTITY = "00112233445566778899aabbccddeeff"
PAGES = 3
ROW = PAGES * PAGE
PAYLOAD = ROW - HEADER_BYTES
SLOTS = 8
LATER = 30.0

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def slab_in(folder: Path, slots: int = SLOTS, row_bytes: int = ROW, identity: str = IDENTITY) -> Slab:
    """Rank 0's."""
    return Slab(folder, 0, slots, row_bytes, identity)


def soon() -> float:
    """A deadline that does not matter."""
    return time.monotonic() + LATER


def name_of(number: int) -> bytes:
    """Of part ``number``."""
    return part_name(IDENTITY, 0, number.to_bytes(8, "little"))


def fill(arena: Arena, slot: int, number: int) -> None:
    """Part ``number``, sealed."""
    payload = arena.payload(slot, arena.row_bytes - HEADER_BYTES)
    payload[:] = np.random.default_rng(number).integers(0, 256, payload.size, np.uint8)
    seal(arena.row(slot), IDENTITY, name_of(number))


def filled(numbers: Sequence[int]) -> Arena:
    """One part per row."""
    arena = Arena(len(numbers), ROW)
    for slot, number in enumerate(numbers):
        fill(arena, slot, number)
    return arena


def write(slab: Slab, slots: Sequence[int], numbers: Sequence[int]) -> list[Outcome]:
    """Parts of these numbers to these slots."""
    arena = filled(numbers)
    return slab.write_from(slots, [arena.row(row) for row in range(len(slots))], soon())


def verdict(slab: Slab, slot: int, number: int) -> Verdict:
    """What a load of part ``number`` from this slot finds."""
    arena = Arena(1, slab.row_bytes)
    assert slab.read_into([slot], [arena.row(0)], soon()) == [Outcome.HIT]
    return check(arena.row(0), IDENTITY, name_of(number))


@contextmanager
def another_file(slab: Slab, path: str) -> Iterator[None]:
    """The slab's file descriptor leads elsewhere: the kernel's own errors, without a broken disk."""
    saved, other = os.dup(slab._fd), os.open(path, os.O_RDWR)
    os.dup2(other, slab._fd)
    try:
        yield
    finally:
        os.dup2(saved, slab._fd)
        os.close(saved)
        os.close(other)
