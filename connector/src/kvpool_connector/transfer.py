"""The values that cross between the scheduler's process and the ranks. Immutable, picklable, no behaviour."""

from __future__ import annotations

import dataclasses
import enum

Ticket = int
"""Number of one transfer, given out by the scheduler. Failures travel back under it, so that a report about a transfer from
before a cache reset can be recognised and dropped."""


class Kind(enum.Enum):
    """Direction, seen from KV memory."""

    LOAD = "load"
    STORE = "store"


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """One transfer as a rank needs it. Keys and slots are in the order in which vLLM lists the blocks of the same job."""

    kind: Kind
    ticket: Ticket
    req_id: str
    keys: tuple[bytes, ...]
    slots: tuple[int, ...]
    fetch: tuple[bool, ...] = ()
    """LOAD: True where the slot is empty and must be filled from the remote store first."""
    put: bool = False
    """STORE: put the parts into the remote store afterwards."""


@dataclasses.dataclass(slots=True)
class Reports:
    """What a rank tells the scheduler beside the completions that vLLM carries."""

    failed: dict[Ticket, set[int]] = dataclasses.field(default_factory=dict)
    """Positions in the transfer's keys that this rank could not read or write."""
    puts: dict[Ticket, list[set[int]]] = dataclasses.field(default_factory=dict)
    """Ended puts: one entry per rank, with the positions that are not in the remote store."""

    def __bool__(self) -> bool:
        return bool(self.failed or self.puts)

    def merge(self, other: Reports) -> Reports:
        """Both ranks' reports in a new object."""
        merged = Reports(
            {ticket: set(positions) for ticket, positions in self.failed.items()},
            {ticket: list(ranks) for ticket, ranks in self.puts.items()},
        )
        for ticket, positions in other.failed.items():
            merged.failed.setdefault(ticket, set()).update(positions)
        for ticket, ranks in other.puts.items():
            merged.puts.setdefault(ticket, []).extend(ranks)
        return merged
