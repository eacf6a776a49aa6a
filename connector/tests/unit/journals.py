"""Journals of tests: eight slots, and what one finds in a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kvpool_connector.tiers.journal import FILE, RECORD_BYTES, Journal

IDENTITY = "00112233445566778899aabbccddeeff"
SLOTS = 8
ROW = 12288
HEADER = 40
THREAD = "kvpool-journal"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
WRITER = """
import sys
from pathlib import Path
from kvpool_connector.tiers.journal import Journal
journal, number = Journal(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]), 0
while True:
    for _ in range(50):
        journal.stored(number.to_bytes(36, "big"), number % int(sys.argv[2]))
        number += 1
    journal.flush(30)
    print(number, flush=True)
"""


def journal_in(folder: Path, slots: int = SLOTS, row_bytes: int = ROW, identity: str = IDENTITY) -> Journal:
    """With what most tests use."""
    return Journal(folder, slots, row_bytes, identity)


def key_of(number: int) -> bytes:
    """As long as vLLM's SHA-256 with a group index behind it."""
    return number.to_bytes(36, "big")


def write(folder: Path, *stored: tuple[bytes, int]) -> None:
    """One process's life."""
    journal = journal_in(folder)
    for key, slot in stored:
        journal.stored(key, slot)
    journal.close()


def found(folder: Path, slots: int = SLOTS) -> list[tuple[bytes, int]]:
    """What the next process finds."""
    journal = journal_in(folder, slots)
    recovered = journal.recovered()
    journal.close()
    return recovered


def length(folder: Path) -> int:
    """Records in the file."""
    size = (folder / FILE).stat().st_size - HEADER
    assert size % RECORD_BYTES == 0
    return size // RECORD_BYTES
