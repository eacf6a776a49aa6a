"""Which slot is given up next: batches of the coldest idle slots, by a policy's scores. One thread, no I/O.

A victim costs O(1) amortised and no call a millisecond, with half a million slots: which slots are idle is seen in one pass over
bytes, then at most ``WINDOW`` of them are scored, and one of ``BATCH`` of these is a victim. Each is checked again when it is
taken, since it may have been used since.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from kvpool_connector.tiers.policy import Policy

WINDOW = 8192
"""Slots scored in one go. In larger tiers every n-th slot, so that a window is a fair sample."""
BATCH = 64
"""One of so many slots of a window becomes a victim. In tiers of fewer than twice as many slots, the order is exact."""

Flags = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """What is known of slots, by slot; shape (slots,) each. Views of memory that the index writes."""

    good: Flags
    dirty: Flags
    held: Flags
    uses: Flags
    refs: npt.NDArray[np.int32]
    stamp: npt.NDArray[np.int64]
    """When the slot was last used, in ticks of the index."""
    depth: npt.NDArray[np.uint32]


class Victims:
    """The order in which slots are given up."""

    def __init__(self, columns: Columns, policy: Policy) -> None:
        self._columns, self._policy = columns, policy
        self._slots = len(columns.good)
        self._windows = max(-(-self._slots // WINDOW), 1)
        self._window = 0
        self._batch: list[int] = []  # coldest last
        self._as_of = 0
        self._exhausted = False

    def next(self, now: int) -> int | None:
        """The slot to give up; None if there is none, which is then not looked for again before :meth:`changed`.

        Args:
            now: the index's tick.
        """
        columns = self._columns
        while not self._exhausted:
            while self._batch:
                slot = self._batch.pop()
                used_since = columns.stamp[slot] > self._as_of
                if columns.good[slot] and not (
                    used_since or columns.refs[slot] or columns.held[slot] or columns.dirty[slot]
                ):
                    return slot
            self._exhausted = not self._refill(now)
        return None

    def changed(self) -> None:
        """A slot may have become idle."""
        self._exhausted = False

    def coldest(self, count: int, now: int) -> list[int]:
        """Up to ``count`` idle slots in the order in which they will be given up, dirty ones included."""
        able = self._idle(dirty=True)
        found: list[int] = []
        first = self._window - bool(self._batch)  # the window whose victims are not all taken
        for step in range(self._windows):
            if len(found) >= count:
                break
            found += self._select(able, (first + step) % self._windows, count - len(found), now)
        return found

    def _refill(self, now: int) -> bool:
        able = self._idle(dirty=False)
        if not able.any():
            return False
        for _ in range(self._windows):
            size = -(-(self._slots - self._window) // self._windows)
            self._batch = self._select(able, self._window, max(size // BATCH, 1), now)[::-1]
            self._as_of = now
            self._window = (self._window + 1) % self._windows
            if self._batch:
                return True
        return False

    def _idle(self, *, dirty: bool) -> npt.NDArray[np.bool_]:
        columns = self._columns
        in_use = columns.held if dirty else columns.held | columns.dirty
        idle: npt.NDArray[np.bool_] = (columns.good > in_use) & (columns.refs == 0)
        return idle

    def _select(self, able: npt.NDArray[np.bool_], window: int, count: int, now: int) -> list[int]:
        """The coldest slots of a window, coldest first."""
        columns = self._columns
        numbers = np.flatnonzero(able[window :: self._windows]) * self._windows + window
        depth = columns.depth[numbers] / self._slots
        age = (now - columns.stamp[numbers]) / self._slots
        scores = self._policy.scores(age, columns.uses[numbers].astype(np.float64), depth)
        scores = scores - depth * (0.5 / self._slots)  # the tail before the head; less than any difference in age
        if count < len(numbers):
            coldest = np.argpartition(scores, count)[:count]
            numbers, scores = numbers[coldest], scores[coldest]
        ordered: list[int] = numbers[np.argsort(scores)].tolist()
        return ordered
