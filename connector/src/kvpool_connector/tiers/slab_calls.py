"""The slab behind calls that can be given up: a file system that hangs (NFS, FUSE, a disk that dies) does not return from one.

As with the stores' own clients (docs/adr/0007-lent-rows.md), calls are made on a thread of their own, one at a time. A *read*
that was given up may still fill its rows, which are `lent` until it has returned; they are few, since a call reads no more
than ``most_lent`` rows. A *write* that was given up only reads its rows: they may be used for something else at once. What it
then writes into the slab is refused by the check of each part, and no other write can begin, or be overtaken, before it has
returned (docs/adr/0012-disks-that-hang.md).

All methods belong to one lane's thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from kvpool_connector.log import get_logger
from kvpool_connector.stores import Loan, Outcome
from kvpool_connector.stores.caller import Call, Caller
from kvpool_connector.tiers.slab import Slab

logger = get_logger(__name__)

T = TypeVar("T")

GRACE_S = 0.1
"""So long after its deadline a read may return: a disk that works ends a call of 16 MiB by then, and nothing is lent."""
READ_S, WRITE_S = 2.0, 5.0
"""The longest that one call may take, whatever its deadline. 16 MiB in 2 s are 8 MB/s: computing is faster than that."""
MOST_WRITTEN = 8
"""Rows of one call that writes."""
_TELL_EVERY_S = 10.0


class SlabCalls:
    """Calls of one slab."""

    def __init__(self, slab: Slab, most_lent: int, on_silence: Callable[[bool], object] = lambda silent: None) -> None:
        """Args:
        most_lent: rows that a read may leave lent, at least one.
        on_silence: told True when a call was given up, and False when it has returned, from any thread.
        """
        self._slab, self.most_lent, self._on_silence = slab, most_lent, on_silence
        self._caller = Caller("slab")
        self._lent: Loan | None = None
        self._tell_at = 0.0

    @property
    def lent(self) -> Loan | None:
        """Return the rows of the last read that may still be filled, or None."""
        return self._lent if self._caller.busy else None

    def read_into(self, slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Fill rows as :meth:`Slab.read_into` does, but return by the deadline, give or take `GRACE_S`.

        Returns:
            an outcome for each slot. TIMEOUT: the deadline passed. STALLED: the disk does not answer; it is asked again when
            the call that hangs has returned.
        """
        self._lent = None
        outcomes: list[Outcome] = []
        for start in range(0, len(slots), self.most_lent):
            end = start + self.most_lent
            part = slots[start:end], rows[start:end]
            got = self._read(*part, deadline, start)
            outcomes += got
            if got[-1] is Outcome.TIMEOUT or got[-1] is Outcome.STALLED:
                break
        return outcomes + outcomes[-1:] * (len(slots) - len(outcomes))

    def _read(self, slots: Sequence[int], rows: Sequence[memoryview], deadline: float, start: int) -> list[Outcome]:
        """Make one call. ``start`` is where in its batch the first slot stands."""
        if self._caller.busy:
            return [Outcome.STALLED] * len(slots)
        now = time.monotonic()
        if now >= deadline:
            return [Outcome.TIMEOUT] * len(slots)
        call = self._caller.begin(lambda: self._slab.read_into(slots, rows, deadline))
        until = min(deadline + GRACE_S, now + READ_S)
        if call.ends(until):
            return call.result(until)
        self._lent = Loan(range(start, start + len(slots)), call.then)
        self._give_up(call, "read")
        return [Outcome.TIMEOUT if until > deadline else Outcome.STALLED] * len(slots)

    def write_from(self, slots: Sequence[int], rows: Sequence[memoryview]) -> list[Outcome]:
        """Write rows as :meth:`Slab.write_from` does, at most `MOST_WRITTEN` of them, and return within `WRITE_S`.

        Returns:
            an outcome for each slot. STALLED: the disk does not answer.
        """
        assert len(slots) <= MOST_WRITTEN
        if self._caller.busy:
            return [Outcome.STALLED] * len(slots)
        until = time.monotonic() + WRITE_S
        call = self._caller.begin(lambda: self._slab.write_from(slots, rows, until))
        if call.ends(until):
            return call.result(until)
        self._give_up(call, "write")
        return [Outcome.STALLED] * len(slots)

    def take_errors(self) -> Counter[str]:
        """Return the errors since the last call, see :attr:`Slab.errors`. While a call hangs they are its thread's."""
        if self._caller.busy:
            return Counter()
        errors = self._slab.errors.copy()
        self._slab.errors.clear()
        return errors

    def close(self, until: float) -> bool:
        """Close the file. Return False if that, or a call before it, hangs: it is left to end with the process."""
        ended = not self._caller.busy and self._caller.begin(self._slab.close).ends(until)
        if not ended:
            logger.warning("disk tier: a call hangs; its file stays open and locked until this process ends")
        self._caller.close()
        return ended

    def _give_up(self, call: Call[T], what: str) -> None:
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            logger.warning("disk tier: a %s has not returned; blocks on disk are computed until it has", what)
        self._on_silence(True)
        call.then(lambda: self._on_silence(False))
