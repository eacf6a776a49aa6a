"""The store that engines share, as one rank uses it: a connection that reads and one that writes, each on its lane."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from kvpool_connector.log import get_logger
from kvpool_connector.stores import Loan, Outcome, Store
from kvpool_connector.transfer import Spill
from kvpool_connector.worker.lanes import URGENT, Lane
from kvpool_connector.worker.outbox import Outbox
from kvpool_connector.worker.rows import Rows
from kvpool_connector.worker.secondary.base import Place, missing

logger = get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
    """What the tier is made of."""

    reader: Store
    writer: Store
    fetch_s: float
    put_s: float
    most_lent: int = 0
    """Buffers that the reader may lend, see `Store.lent`."""


class RemoteTier:
    """See :class:`Secondary`. It keeps parts under their names."""

    def __init__(self, remote: Remote, rows: Rows, outbox: Outbox) -> None:
        """Connects at once: the first load should not wait for name and handshake."""
        self._remote, self._rows, self._outbox, self._dropping = remote, rows, outbox, False
        self.read_lane, self._write_lane = Lane("read"), Lane("write")
        self.read_lane.run(lambda: self._greet(remote.reader))
        self._write_lane.run(lambda: self._greet(remote.writer))

    @property
    def lent(self) -> Loan | None:
        """See :class:`Secondary`."""
        return self._remote.reader.lent

    def read(self, places: Sequence[Place], deadline: float) -> list[Outcome]:
        """See :class:`Secondary`."""
        names = [self._rows.parts.name(place.key) for place in places]
        parts = [self._rows.part(place.key, place.slot) for place in places]
        outcomes = self._remote.reader.get_into(names, parts, deadline)
        for outcome in outcomes:
            self._outbox.count(f"get {outcome.value}", 1)
        self._count_errors(self._remote.reader)
        return outcomes

    def write(self, spill: Spill) -> None:
        """See :class:`Secondary`."""
        names = [self._rows.parts.name(key) for key in spill.keys]
        parts = [self._rows.part(key, slot) for key, slot in zip(spill.keys, spill.slots, strict=True)]
        self._write_lane.run(lambda: self._write(spill.ticket, names, parts))

    def remove(self, key: bytes) -> None:
        """See :class:`Secondary`."""
        name = self._rows.parts.name(key)
        self._write_lane.run(lambda: self._remove(name), URGENT)

    def drop(self) -> None:
        """See :class:`Secondary`."""
        self._dropping = True

    def close(self, until: float) -> bool:
        """See :class:`Secondary`."""
        lanes = ((self.read_lane, self._remote.reader), (self._write_lane, self._remote.writer))
        ended = [lane.close(max(until - time.monotonic(), 0.1)) for lane, _ in lanes]
        for (_, store), done in zip(lanes, ended, strict=True):
            if done:  # else its thread still uses the connection
                store.close()
        return all(ended)

    def _greet(self, store: Store) -> None:
        store.ping(time.monotonic() + self._remote.fetch_s)

    def _write(self, ticket: int, names: Sequence[bytes], parts: Sequence[memoryview]) -> None:
        lost = set(range(len(names)))
        try:
            if not self._dropping:
                lost = missing(self._write_absent(names, parts))
        except Exception:
            logger.exception("a write to the remote store failed")
        finally:
            if (loan := self._remote.writer.lent) is None:
                self._outbox.spilled(ticket, lost)
            else:  # its rows are read until then
                loan.then(lambda: self._outbox.spilled(ticket, lost))

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
