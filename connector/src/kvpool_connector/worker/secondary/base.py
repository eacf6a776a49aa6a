"""What the mover knows of a tier below memory.

A tier's reads run on its read lane, behind nothing but other reads; its writes are best effort, and
each is reported exactly once, whatever happened, because until then the scheduler keeps its rows
pinned. The scheduler bounds how many rows wait here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from kvpool_connector.stores import Loan, Outcome
from kvpool_connector.transfer import Spill
from kvpool_connector.worker.lanes import Lane


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a part lies in a tier, and where it is read to."""

    key: bytes
    slot: int
    """Whose row is filled."""
    disk_slot: int = 0
    """Of the slab. A store goes by the key."""


class Secondary(Protocol):
    """One tier below memory, of one rank."""

    @property
    def read_lane(self) -> Lane:
        """Return the lane on which `read` is called."""

    @property
    def lent(self) -> Loan | None:
        """Return the rows of the last `read` that may still be written into. On the read lane only."""

    def read(self, places: Sequence[Place], deadline: float) -> list[Outcome]:
        """Fill rows, and return an outcome for each. On the read lane only; ends by the deadline,
        which is a time of the monotonic clock."""

    def write(self, spill: Spill) -> None:
        """Queue a write. The rows stay as they are until its ticket is reported."""

    def remove(self, key: bytes) -> None:
        """Take a damaged part out, so that the next write is not skipped because of it."""

    def drop(self) -> None:
        """Report writes that have not begun as missing from now on."""

    def close(self, until: float) -> bool:
        """Finish and end the lanes. Return False if something still runs at that time."""


def missing(outcomes: Sequence[Outcome]) -> set[int]:
    """Return the positions that were not read or written."""
    return {position for position, outcome in enumerate(outcomes) if outcome is not Outcome.HIT}
