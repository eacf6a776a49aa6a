"""The work queue: which pool is due when.

De-duplicates, hands out a key to one worker at a time, and holds back what fails, longer each time. Pure but for the clock
and the random numbers that it is given; workers wait for it in ``workers``.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 300.0


class WorkQueue(Generic[Key]):
    """Keys with a time each.

    A key that is added while it is in hand is handed out again afterwards: what the worker read may be older.
    """

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        """``random`` gives numbers in [0, 1)."""
        self._clock = clock
        self._random = random
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = itertools.count()
        self._in_hand: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        """Keys that wait, due or not."""
        return len(self._due)

    def add(self, key: Key, *, after: float = 0.0) -> None:
        """The key is due in ``after`` seconds, or earlier if it was so already."""
        due = self._clock() + after
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, next(self._order), key))

    def take(self) -> Key | None:
        """A key that is due and in nobody's hand; None if there is none. Give it back by ``done`` or ``failed``."""
        held = []
        taken: Key | None = None
        while self._heap and self._heap[0][0] <= self._clock():
            entry = heapq.heappop(self._heap)
            due, _, key = entry
            if self._due.get(key) != due:
                continue  # an earlier time took its place
            if key in self._in_hand:
                held.append(entry)
                continue
            del self._due[key]
            self._in_hand[key] = self._clock()
            taken = key
            break
        for entry in held:
            heapq.heappush(self._heap, entry)
        return taken

    def done(self, key: Key, *, again_after: float | None = None) -> None:
        """The work succeeded; look at the key again later, if at all."""
        del self._in_hand[key]
        self._failures.pop(key, None)
        if again_after is not None:
            self.add(key, after=again_after)

    def failed(self, key: Key) -> float:
        """The work failed; returns the seconds until the next try: doubled each time, and half of it by chance, so that
        pools that failed together don't come back together."""
        del self._in_hand[key]
        count = self._failures[key] = self._failures.get(key, 0) + 1
        longest = min(FIRST_BACKOFF * 2.0 ** min(count - 1, 32), LONGEST_BACKOFF)
        delay = longest * (0.5 + self._random() / 2)
        self.add(key, after=delay)
        return delay

    def wait_for(self) -> float | None:
        """Seconds until a key that is in nobody's hand is due; None: until somebody adds or gives back one."""
        times = [due for key, due in self._due.items() if key not in self._in_hand]
        return max(0.0, min(times) - self._clock()) if times else None

    def longest_in_hand(self) -> float:
        """Seconds that the slowest worker has been at its key."""
        return max((self._clock() - since for since in self._in_hand.values()), default=0.0)
