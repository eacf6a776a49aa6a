"""The disk tier of one rank: its slab, on one lane for reads and writes, of which reads go first.

Nothing on the lane waits for a disk that hangs; see `SlabCalls`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from kvpool_connector.log import get_logger
from kvpool_connector.stores import Loan, Outcome
from kvpool_connector.tiers.slab import Slab
from kvpool_connector.tiers.slab_calls import MOST_WRITTEN, SlabCalls
from kvpool_connector.transfer import DISK_RETURNED, DISK_SILENT, Spill
from kvpool_connector.worker.lanes import NORMAL, Lane
from kvpool_connector.worker.outbox import Outbox
from kvpool_connector.worker.rows import Rows
from kvpool_connector.worker.secondary.base import Place, missing

logger = get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """What the tier is made of."""

    slab: Slab
    most_lent: int
    """Rows that a read which was given up may still fill."""


class DiskTier:
    """See :class:`Secondary`. It keeps whole rows."""

    def __init__(self, disk: Disk, rows: Rows, outbox: Outbox) -> None:
        self._rows, self._outbox, self._dropping = rows, outbox, False
        self._slab = SlabCalls(disk.slab, disk.most_lent, self._silence)
        self.read_lane = Lane("disk")

    @property
    def lent(self) -> Loan | None:
        """See :class:`Secondary`."""
        return self._slab.lent

    def read(self, places: Sequence[Place], deadline: float) -> list[Outcome]:
        """See :class:`Secondary`."""
        rows = [self._rows.row(place.slot) for place in places]
        outcomes = self._slab.read_into([place.disk_slot for place in places], rows, deadline)
        for outcome in outcomes:
            self._outbox.count(f"disk read {outcome.value}", 1)
        self._count_errors()
        return outcomes

    def write(self, spill: Spill) -> None:
        """See :class:`Secondary`. In turns, so that a read waits for one of them at most."""
        slots, rows = spill.disk_slots, [self._rows.row(slot) for slot in spill.slots]
        all_lost: set[int] = set()
        starts = range(0, len(slots), MOST_WRITTEN)

        def turn(start: int) -> None:
            end = start + MOST_WRITTEN
            lost = set(range(len(slots[start:end])))
            try:
                if not self._dropping:
                    outcomes = self._slab.write_from(slots[start:end], rows[start:end])
                    lost = missing(outcomes)
                    for outcome in outcomes:
                        self._outbox.count(f"disk write {outcome.value}", 1)
                    self._count_errors()
            except Exception:
                logger.exception("a write to the disk failed")
            all_lost.update(start + position for position in lost)
            if start == starts[-1]:
                self._outbox.spilled(spill.ticket, all_lost)

        for start in starts:
            self.read_lane.run(lambda start=start: turn(start), NORMAL)  # type: ignore[misc]

    def remove(self, key: bytes) -> None:
        """See :class:`Secondary`. Nothing to do: the scheduler's half forgets the slot, and its next
        owner writes over it."""

    def drop(self) -> None:
        """See :class:`Secondary`."""
        self._dropping = True

    def close(self, until: float) -> bool:
        """See :class:`Secondary`. A call to the disk that has not returned counts as running."""
        ended = self.read_lane.close(max(until - time.monotonic(), 0.1))
        return ended and self._slab.close(max(until, time.monotonic() + 0.1))

    def _silence(self, silent: bool) -> None:
        """From any thread."""
        self._outbox.count(DISK_SILENT if silent else DISK_RETURNED, 1)

    def _count_errors(self) -> None:
        for name, number in self._slab.take_errors().items():
            self._outbox.count(f"disk {name}", number)
