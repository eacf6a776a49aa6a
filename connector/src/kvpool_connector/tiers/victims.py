"""Which slot is given up next: batches of the coldest idle slots, by a policy's scores. One thread, no I/O.

A victim costs O(1) amortised and a call stays far under a millisecond, however large the tier: one look goes over at most
``WINDOW`` slots and yields one of ``BATCH`` of them. Each is checked again when it is taken, since it may have been used since.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from kvpool_connector.tiers.policy import Policy

WINDOW = 65536
"""Slots looked at in one go. In larger tiers every n-th slot, so that a window is a fair sample."""
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
        found: list[int] = []
        first = self._window - bool(self._batch)  # the window whose victims are not all taken
        for step in range(self._windows):
            if len(found) >= count:
                break
            found += self._select((first + step) % self._windows, count - len(found), now, dirty=True)
        return found

    def _refill(self, now: int) -> bool:
        for _ in range(self._windows):
            size = -(-(self._slots - self._window) // self._windows)
            self._batch = self._select(self._window, max(size // BATCH, 1), now)[::-1]
            self._as_of = now
            self._window = (self._window + 1) % self._windows
            if self._batch:
                return True
        return False

    def _select(self, window: int, count: int, now: int, dirty: bool = False) -> list[int]:
        """The coldest slots of a window, coldest first."""
        columns, part = self._columns, slice(window, None, self._windows)
        able = (columns.good[part] != 0) & (columns.held[part] == 0) & (columns.refs[part] == 0)
        if not dirty:
            able &= columns.dirty[part] == 0
        numbers = np.flatnonzero(able) * self._windows + window
        depth = columns.depth[numbers] / self._slots
        age = (now - columns.stamp[numbers]) / self._slots
        scores = self._policy.scores(age, columns.uses[numbers].astype(np.float64), depth)
        scores = scores - depth * (
            0.5 / self._slots
        )  # less than any difference in age: the tail of a chain before its head
        if count < len(numbers):
            coldest = np.argpartition(scores, count)[:count]
            numbers, scores = numbers[coldest], scores[coldest]
        ordered: list[int] = numbers[np.argsort(scores)].tolist()
        return ordered
