"""The values that cross between the scheduler's process and the ranks. Picklable, next to no behaviour."""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter

Ticket = int
"""Number of one transfer or spill, given out by the scheduler. Failures travel back under it, so that a report about work
from before a cache reset can be recognised and dropped."""

STORE_SILENT = "get stalled"
"""Among the counts of `Reports`: parts that were not read because the store was silent."""

DISK_SILENT, DISK_RETURNED = "disk call given up", "disk call returned"
"""Among the counts of `Reports`: calls to a rank's disk that were given up, and those of them that have returned since. While
there are more of the first, some rank's disk does not answer."""


class Tier(enum.Enum):
    """Where a part lies. The values are the labels of metrics."""

    MEMORY = "memory"  # the rank's arena
    DISK = "disk"  # the rank's slab
    REMOTE = "remote"  # the store that engines share


class Kind(enum.Enum):
    """Direction, seen from KV memory."""

    LOAD = "load"
    STORE = "store"


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """One job of vLLM as a rank needs it. Keys and slots are in the order in which vLLM lists the job's blocks."""

    kind: Kind
    ticket: Ticket
    req_id: str
    keys: tuple[bytes, ...]
    slots: tuple[int, ...]
    """Rows of the arena."""
    from_disk: tuple[tuple[int, int], ...] = ()
    """LOAD: (position, slot of the slab) of rows that are filled from the disk first."""
    from_remote: tuple[int, ...] = ()
    """LOAD: positions of rows that are filled from the remote store first."""
    fetch_s: float = 0.0
    """LOAD: what filling may take, in seconds: longer, and computing would have been the better choice."""
    compared: frozenset[int] = frozenset()
    """STORE: positions whose row holds the block already. It is compared with what was computed, and left as it is."""

    def fetches(self, tier: Tier) -> dict[int, int]:
        """Return the place in this tier by position of the rows that are filled from it first: a slot
        of the slab; 0 in the store, which goes by the key."""
        if tier is Tier.DISK:
            return dict(self.from_disk)
        return dict.fromkeys(self.from_remote, 0) if tier is Tier.REMOTE else {}


@dataclasses.dataclass(frozen=True, slots=True)
class Spill:
    """Rows to write into a lower tier."""

    ticket: Ticket
    tier: Tier
    keys: tuple[bytes, ...]
    slots: tuple[int, ...]
    disk_slots: tuple[int, ...] = ()
    """DISK: where to."""
    generation: int = 0
    """REMOTE: of the store when the write was asked for; what was written to an earlier one may be gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """Read one part and throw it away: how fast is a tier that is not used for loads at present?"""

    tier: Tier
    key: bytes
    disk_slot: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Orders:
    """What the scheduler asks of every rank beside vLLM's jobs."""

    spills: tuple[Spill, ...] = ()
    probes: tuple[Probe, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.spills or self.probes)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One timed read of a lower tier."""

    tier: Tier
    nbytes: int
    seconds: float
    at_most: bool = False
    """The read was given up: the tier would have needed more than the time for these bytes."""


@dataclasses.dataclass(slots=True)
class Reports:
    """What ranks tell the scheduler beside the completions that vLLM carries."""

    failed: dict[Ticket, set[int]] = dataclasses.field(default_factory=dict)
    """Positions in a transfer's keys that some rank could not read or write."""
    lost: dict[Ticket, set[int]] = dataclasses.field(default_factory=dict)
    """Those of them that failed for another reason than time: what a lower tier has of them is of no use."""
    differed: dict[Ticket, set[int]] = dataclasses.field(default_factory=dict)
    """Positions of a store whose row was compared and is not what was computed."""
    spilled: dict[Ticket, list[set[int]]] = dataclasses.field(default_factory=dict)
    """Ended spills: one entry per rank, with the positions that are not in the lower tier."""
    samples: list[Sample] = dataclasses.field(default_factory=list)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    """What happened to parts since the last report, for metrics: "get timeout", "disk ENOSPC", ..."""
    broken: str = ""
    """A rank that cannot serve at all says why; the pool then answers every lookup with a miss."""

    def __bool__(self) -> bool:
        return bool(self.failed or self.differed or self.spilled or self.samples or self.counts or self.broken)

    def merge(self, other: Reports) -> Reports:
        """Both ranks' reports in a new object."""
        return Reports(
            _union(self.failed, other.failed),
            _union(self.lost, other.lost),
            _union(self.differed, other.differed),
            {
                ticket: self.spilled.get(ticket, []) + other.spilled.get(ticket, [])
                for ticket in self.spilled.keys() | other.spilled.keys()
            },
            self.samples + other.samples,
            self.counts + other.counts,
            self.broken or other.broken,
        )


def _union(ours: dict[Ticket, set[int]], theirs: dict[Ticket, set[int]]) -> dict[Ticket, set[int]]:
    return {ticket: ours.get(ticket, set()) | theirs.get(ticket, set()) for ticket in ours.keys() | theirs.keys()}
