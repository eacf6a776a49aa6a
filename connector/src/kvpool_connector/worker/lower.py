"""Lower tiers of one rank: the slab and the remote store, each with lanes of its own.

A tier's reads run on its read lane, behind nothing but other reads; its writes are best effort, and each is reported exactly
once, whatever happened, because until then the scheduler keeps its rows pinned. The scheduler bounds how many rows wait here.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from kvpool_connector.log import get_logger
from kvpool_connector.stores import Loan, Outcome, Store
from kvpool_connector.tiers.slab import Slab
from kvpool_connector.tiers.slab_calls import MOST_WRITTEN, SlabCalls
from kvpool_connector.transfer import DISK_RETURNED, DISK_SILENT, Ticket
from kvpool_connector.worker.lanes import NORMAL, URGENT, Lane
from kvpool_connector.worker.outbox import Outbox

logger = get_logger(__name__)


def _missing(outcomes: Sequence[Outcome]) -> set[int]:
    return {position for position, outcome in enumerate(outcomes) if outcome is not Outcome.HIT}


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
    """The remote store as a rank uses it."""

    reader: Store
    writer: Store
    fetch_s: float
    put_s: float
    most_lent: int = 0
    """Buffers that the reader may lend, see `Store.lent`."""


class RemoteParts:
    """One reader and one writer connection, each on its lane."""

    def __init__(self, remote: Remote, outbox: Outbox) -> None:
        """Connects at once: the first load should not wait for name and handshake."""
        self._remote, self._outbox, self._dropping = remote, outbox, False
        self.read_lane, self._write_lane = Lane("read"), Lane("write")
        self.read_lane.run(lambda: self._greet(remote.reader))
        self._write_lane.run(lambda: self._greet(remote.writer))

    def get(self, names: Sequence[bytes], parts: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Fill parts. On the read lane only."""
        outcomes = self._remote.reader.get_into(names, parts, deadline)
        for outcome in outcomes:
            self._outbox.count(f"get {outcome.value}", 1)
        self._count_errors(self._remote.reader)
        return outcomes

    @property
    def lent(self) -> Loan | None:
        """Parts of the last `get` that may still be written into. On the read lane only."""
        return self._remote.reader.lent

    def write(self, ticket: Ticket, names: Sequence[bytes], parts: Sequence[memoryview]) -> None:
        """Queue a write. The parts stay as they are until the ticket is reported."""
        self._write_lane.run(lambda: self._write(ticket, names, parts))

    def remove(self, name: bytes) -> None:
        """Take a damaged part out of the store, so that the next write is not skipped because of it."""
        self._write_lane.run(lambda: self._remove(name), URGENT)

    def drop(self) -> None:
        """Writes that have not begun are reported as missing from now on."""
        self._dropping = True

    def close(self, until: float) -> bool:
        """Finish and end the lanes. False if one still runs at that time."""
        lanes = ((self.read_lane, self._remote.reader), (self._write_lane, self._remote.writer))
        ended = [lane.close(max(until - time.monotonic(), 0.1)) for lane, _ in lanes]
        for (_, store), done in zip(lanes, ended, strict=True):
            if done:  # else its thread still uses the connection
                store.close()
        return all(ended)

    def _greet(self, store: Store) -> None:
        store.ping(time.monotonic() + self._remote.fetch_s)

    def _write(self, ticket: Ticket, names: Sequence[bytes], parts: Sequence[memoryview]) -> None:
        missing = set(range(len(names)))
        try:
            if not self._dropping:
                missing = _missing(self._write_absent(names, parts))
        except Exception:
            logger.exception("a write to the remote store failed")
        finally:
            if (loan := self._remote.writer.lent) is None:
                self._outbox.spilled(ticket, missing)
            else:  # its rows are read until then
                loan.then(lambda: self._outbox.spilled(ticket, missing))

    def _write_absent(self, names: Sequence[bytes], parts: Sequence[memoryview]) -> list[Outcome]:
        """Put the parts that the store does not have yet: another engine may have been first."""
        deadline = time.monotonic() + self._remote.put_s
        # What is there is used by this: a store that evicts by use would else drop what engines compute again and again.
        outcomes = self._remote.writer.exists_all([[name] for name in names], deadline, touch=True)
        absent = [position for position, outcome in enumerate(outcomes) if outcome is Outcome.MISS]
        put = self._remote.writer.put_from([names[p] for p in absent], [parts[p] for p in absent], deadline)
        for position, outcome in zip(absent, put, strict=True):
            outcomes[position] = outcome
            self._outbox.count(f"put {outcome.value}", 1)
        self._count_errors(self._remote.writer)
        return outcomes

    def _remove(self, name: bytes) -> None:
        (outcome,) = self._remote.writer.delete([name], time.monotonic() + self._remote.put_s)
        self._outbox.count(f"delete {outcome.value}", 1)
        self._count_errors(self._remote.writer)

    def _count_errors(self, store: Store) -> None:
        for name, number in store.errors.items():
            self._outbox.count(name, number)
        store.errors.clear()


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """The disk tier as a rank uses it."""

    slab: Slab
    most_lent: int
    """Rows that a read which was given up may still fill."""


class DiskParts:
    """One lane for reads and writes of the slab; reads go first. Nothing on it waits for a disk that hangs: see `SlabCalls`."""

    def __init__(self, disk: Disk, outbox: Outbox) -> None:
        self._outbox, self._dropping = outbox, False
        self._slab = SlabCalls(disk.slab, disk.most_lent, self._silence)
        self.read_lane = Lane("disk")

    def get(self, slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Fill whole rows. On the lane only."""
        outcomes = self._slab.read_into(slots, rows, deadline)
        for outcome in outcomes:
            self._outbox.count(f"disk read {outcome.value}", 1)
        self._count_errors()
        return outcomes

    @property
    def lent(self) -> Loan | None:
        """Rows of the last `get` that may still be filled. On the lane only."""
        return self._slab.lent

    def write(self, ticket: Ticket, slots: Sequence[int], rows: Sequence[memoryview]) -> None:
        """Queue a write, in turns so that a read waits for one of them at most. The rows stay as they are until the ticket is
        reported."""
        missing: set[int] = set()
        starts = range(0, len(slots), MOST_WRITTEN)

        def turn(start: int) -> None:
            end = start + MOST_WRITTEN
            lost = set(range(len(slots[start:end])))
            try:
                if not self._dropping:
                    outcomes = self._slab.write_from(slots[start:end], rows[start:end])
                    lost = _missing(outcomes)
                    for outcome in outcomes:
                        self._outbox.count(f"disk write {outcome.value}", 1)
                    self._count_errors()
            except Exception:
                logger.exception("a write to the disk failed")
            missing.update(start + position for position in lost)
            if start == starts[-1]:
                self._outbox.spilled(ticket, missing)

        for start in starts:
            self.read_lane.run(lambda start=start: turn(start), NORMAL)  # type: ignore[misc]

    def drop(self) -> None:
        """Writes that have not begun are reported as missing from now on."""
        self._dropping = True

    def close(self, until: float) -> bool:
        """Finish and end the lane. False if it, or a call to the disk, still runs at that time."""
        ended = self.read_lane.close(max(until - time.monotonic(), 0.1))
        return ended and self._slab.close(max(until, time.monotonic() + 0.1))

    def _silence(self, silent: bool) -> None:
        """From any thread."""
        self._outbox.count(DISK_SILENT if silent else DISK_RETURNED, 1)

    def _count_errors(self) -> None:
        for name, number in self._slab.take_errors().items():
            self._outbox.count(f"disk {name}", number)
