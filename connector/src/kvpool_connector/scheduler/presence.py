"""Whether the remote store has a key, asked in batches on a thread of its own.

``ask``, ``flush``, ``believe``, ``doubt``, ``forget`` and the properties run on the scheduler's
thread and never block: ``ask`` gives a question up at its deadline whatever the thread does.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math
import queue
import time
from collections.abc import Callable, Iterable

from kvpool_connector import threads
from kvpool_connector.log import get_logger
from kvpool_connector.stores import Outcome, Store
from kvpool_connector.tiers.keymap import Key

logger = get_logger(__name__)

PRESENT_S, ABSENT_S = 5.0, 1.0
"""How long an answer is believed: a part that is there rarely goes, one that is absent may come any moment."""
AWAITED_S = 0.02
"""ABSENT_S where parts are on their way: a decode engine asks for what its prefill engine is writing."""
HEARTBEAT_S = 2.0
"""A quiet store is pinged this often, so that a lost and returned store is noticed before the next request."""
_TELL_EVERY_S = 10.0
_MOST_VERDICTS = 100_000
_CLOSE_S = 2.0


@dataclasses.dataclass(slots=True)
class _Verdict:
    present: bool | None  # None: asked, not answered
    until: float


class Presence:
    """Verdicts about keys. Owns one thread and, in it, one store connection."""

    def __init__(
        self,
        store: Store,
        *,
        names: Callable[[Key], Iterable[bytes]],
        timeout_s: Callable[[int], float],
        patience_s: float,
        greeting: tuple[bytes, memoryview] | None = None,
        absent_s: float = ABSENT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        store: used by the presence thread only.
        names: the names of all ranks' parts of a key; a key is present only if all of them are.
        timeout_s: by number of questions in a batch: after this an unanswered one is a miss for the request that asked.
        patience_s: after this the store is taken for lost. Longer than the time-out: an answer that is merely late is
            still good for the next request, and no reason to close the connection.
        absent_s: how long a key that was absent is taken to be so.
        greeting: a name and a value to store once per connection, unless the name is there: the identity document. It lies where
            the store's client can take it from.
        """
        self._store, self._names, self._clock = store, names, clock
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._verdicts: dict[Key, _Verdict] = {}
        self._pending: list[Key] = []
        # No keys: a ping. None: the end.
        self._questions: queue.SimpleQueue[tuple[float, list[Key]] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Key, bool]] = queue.SimpleQueue()
        self._deadlines: list[float] = []  # a heap: of the batches that were sent
        self._news = False
        self._greeting = greeting
        self._believed_s = {True: PRESENT_S, False: absent_s}
        self._generation = 0
        self._reachable = self._tried = False
        self._tell_at = 0.0
        self.late = 0
        """Questions that were given up: no answer within the deadline. Each is a miss that costs computing."""
        self._thread = threads.start("presence", self._serve)

    @property
    def generation(self) -> int:
        """Changes when the store was away: what it held before may be gone. 0: never reached."""
        return self._generation

    @property
    def reachable(self) -> bool:
        """The store answered last time."""
        return self._reachable

    def ask(self, key: Key) -> bool | None:
        """Present, absent, or None: not known yet, ask again in the next step (bounded by the deadline)."""
        # Before the first contact a question waits like any other. Later the heartbeat finds out
        # when a lost store is back; until then not even what it was known to have can be loaded.
        if not self._reachable and self._tried:
            return False
        now = self._clock()
        self._collect(now)
        verdict = self._verdicts.get(key)
        if verdict is not None and now < verdict.until:
            return verdict.present
        if verdict is not None and verdict.present is None:
            self._count_late(now)
            self.believe(key, False)
            return False
        self._verdicts[key] = _Verdict(None, math.inf)  # the batch gets its deadline when it is sent
        self._pending.append(key)
        return None

    def take_answers(self) -> bool:
        """Note what the thread found out meanwhile. True if there was anything since the last call, or a batch's deadline
        passed: what was told to ask again should do so now."""
        self._collect(self._clock())
        news, self._news = self._news, False
        return news

    def _collect(self, now: float) -> None:
        while not self._answers.empty():
            self.believe(*self._answers.get())
            self._news = True
        while self._deadlines and self._deadlines[0] <= now:
            heapq.heappop(self._deadlines)
            self._news = True

    def _count_late(self, now: float) -> None:
        """Never silent: what is given up here is computed although the store may have it."""
        self.late += 1
        if now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            logger.warning(
                "the store did not say in time what it holds (at least %.0f ms); those blocks are computed "
                "(%d given up so far)", self._timeout_s(1) * 1e3, self.late,
            )  # fmt: skip

    def believe(self, key: Key, present: bool) -> None:
        """Take a verdict from elsewhere: a part that was just put, or just could not be read."""
        if len(self._verdicts) >= _MOST_VERDICTS:
            self._verdicts.clear()  # bounded; what is still wanted is asked again
        self._verdicts[key] = _Verdict(present, self._clock() + self._believed_s[present])

    def flush(self) -> None:
        """Send the questions of this step as one batch, with one deadline."""
        if self._pending:
            until = self._clock() + self._timeout_s(len(self._pending))
            for key in self._pending:
                if (verdict := self._verdicts.get(key)) is not None and verdict.present is None:
                    verdict.until = until
            heapq.heappush(self._deadlines, until)
            self._questions.put((time.monotonic() + self._patience_s, self._pending))
            self._pending = []

    def doubt(self) -> None:
        """A rank waited for the store in vain: until it answers here, no request shall load from it
        or wait for it. Asks it at once."""
        if self._reachable:
            self._reachable = False
            self._questions.put((math.inf, []))

    def forget(self) -> None:
        """Drop all verdicts."""
        self._verdicts.clear()

    def close(self) -> None:
        """End the thread."""
        self._questions.put(None)
        self._thread.join(timeout=_CLOSE_S)  # a daemon: one that hangs in a store's last answer ends with the process

    # ---- the presence thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        self._guarded(self._heartbeat)
        while True:
            try:
                question = self._questions.get(timeout=HEARTBEAT_S if self._reachable else HEARTBEAT_S / 4)
            except queue.Empty:
                self._guarded(self._heartbeat)
                continue
            if question is None:
                self._store.close()
                return
            self._guarded(functools.partial(self._answer, *question))

    def _guarded(self, task: Callable[[], None]) -> None:
        """A fault of ours must not end the thread: every question would then be a silent miss."""
        try:
            task()
        except Exception:
            logger.exception("presence query failed; its keys count as absent")

    def _answer(self, deadline: float, keys: list[Key]) -> None:
        if not keys:
            self._heartbeat()
            return
        names = [list(self._names(key)) for key in keys]
        outcomes = self._store.exists([name for parts in names for name in parts], deadline)
        # A silence is noted before what the store had said: nothing of that can be loaded now.
        answered = Outcome.HIT in outcomes or Outcome.MISS in outcomes
        reached = answered and Outcome.STALLED not in outcomes
        if not reached:
            self._note(reached)
        left = iter(outcomes)
        for key, parts in zip(keys, names, strict=True):
            of_parts = [next(left) for _ in parts]
            self._answers.put((key, all(outcome is Outcome.HIT for outcome in of_parts)))
        if reached:  # which may take a while, if it is another server than before
            self._note(reached)

    def _heartbeat(self) -> None:
        self._note(self._store.ping(time.monotonic() + self._patience_s) is Outcome.HIT)

    def _note(self, reached: bool) -> None:
        generation = self._store.generation
        if reached and generation != self._generation and self._greeting is not None:
            name, value = self._greeting
            deadline = time.monotonic() + self._patience_s
            if self._store.exists([name], deadline) == [Outcome.MISS]:
                self._store.put_from([name], [value], deadline)
        self._generation = generation
        self._reachable = reached
        self._tried = True
