"""The presence thread: the scheduler's connection to the remote store, and the only place in its process where it is waited for.

`Presence` gives it tasks and takes what it found; nothing here is locked, everything crosses in queues.
"""

from __future__ import annotations

import functools
import itertools
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable

from kvpool_connector import threads
from kvpool_connector.log import get_logger
from kvpool_connector.scheduler.questions import Chain
from kvpool_connector.stores import Outcome, Store
from kvpool_connector.tiers.keymap import Key

logger = get_logger(__name__)

HEARTBEAT_S = 2.0
"""A quiet store is asked this often, so that a lost and returned store is noticed before the next request."""
_CALL_KEYS, _RUN = 256, 16
"""Keys of one call of the store: between two calls the scheduler's thread gets the interpreter. And keys of one question behind
a head that is there: most often all of them are, and a question costs more than a name in it."""
_CLOSE_S = 2.0
_SAID = (Outcome.HIT, Outcome.MISS)


class _GivenUpError(Exception):
    """The rest of a batch is not asked about."""


class Asker:
    """Owns one thread and, in it, one store connection. The first group of methods runs on the scheduler's
    thread and never blocks.

    Attributes:
        ended: chains whose answers are there.
        refreshed: for each `refresh`, keys and whether the store has them; None if nothing was learnt.
        counted: refusals of the server, by its words for them.
        generation: how often a connection was made, see `Store`; 0: the store was never reached.
        reachable: the store answered last time.
        tried: it was called at least once.
    """

    def __init__(
        self,
        store: Store,
        names: Callable[[Key], Iterable[bytes]],
        patience_s: float,
        greeting: tuple[bytes, memoryview] | None,
    ) -> None:
        """Args: see `Presence`."""
        self._store, self._names, self._patience_s, self._greeting = store, names, patience_s, greeting
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # None: the end
        self.ended: queue.SimpleQueue[Chain] = queue.SimpleQueue()
        self.refreshed: queue.SimpleQueue[list[tuple[Key, bool]] | None] = queue.SimpleQueue()
        self.counted: queue.SimpleQueue[Counter[str]] = queue.SimpleQueue()
        self.generation = 0
        self.reachable = self.tried = False
        self._thread = threads.start("presence", self._serve)

    def ask(self, chains: list[Chain]) -> None:
        """Ask about one batch; each chain comes back in ``ended``."""
        self._tasks.put(functools.partial(self._answer, time.monotonic() + self._patience_s, chains))

    def refresh(self, keys: list[Key]) -> None:
        """Tell the store that these keys are used, and see whether it has them."""
        self._tasks.put(functools.partial(self._refresh, keys))

    def doubt(self) -> None:
        """Count the store as lost until it answers, which it is asked for at once."""
        self.reachable = False
        self._tasks.put(self._heartbeat)

    def connect_anew(self) -> None:
        """Drop the connection: the store's address may lead to another server now."""
        self._tasks.put(self._connect_anew)

    def close(self) -> None:
        """End the thread."""
        self._tasks.put(None)
        self._thread.join(timeout=_CLOSE_S)  # a daemon: one that hangs in a store's last answer ends with the process

    # ---- the presence thread -------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._guarded(self._heartbeat)
        while True:
            try:
                task = self._tasks.get(timeout=HEARTBEAT_S if self.reachable else HEARTBEAT_S / 4)
            except queue.Empty:
                task = self._heartbeat
            if task is None:
                self._store.close()
                return
            self._guarded(task)
            if self._store.errors:
                self.counted.put(self._store.errors.copy())
                self._store.errors.clear()

    def _guarded(self, task: Callable[[], None]) -> None:
        """A fault of ours must not end the thread: every question would then be a silent miss."""
        try:
            task()
        except Exception:
            logger.exception("presence query failed; its keys count as absent")

    def _answer(self, deadline: float, chains: list[Chain]) -> None:
        """Heads first, so that prompts that the store does not know cost little; then one chain after the other."""
        try:
            going_on = self._ask_round([chain for chain in chains if chain.window is None], deadline)
            windows = [chain for chain in chains if chain.window is not None]
            for chain in windows:
                if chain.futile:
                    self._publish(chain)
            going_on += self._ask_round([chain for chain in windows if chain.answers is None], deadline)
            for chain in going_on:
                left = [chain]
                while left:
                    left = self._ask_round(left, deadline, _RUN)
        except _GivenUpError:
            return
        finally:
            for chain in chains:
                if chain.answers is None:
                    self._publish(chain, rest=False)
        self._note(True)  # which may take a while, if it is another server than before

    def _publish(self, chain: Chain, *, rest: bool | None = None) -> None:
        chain.end(rest=rest)
        self.ended.put(chain)

    def _ask_round(self, chains: list[Chain], deadline: float, run: int = 1) -> list[Chain]:
        """Ask one round of each chain, and publish those that ended. Returns the others.

        Args:
            run: keys of one question.

        Raises:
            _GivenUpError: see `_present`.
        """
        rounds = [chain.next_round() for chain in chains]
        keys = list(itertools.chain.from_iterable(rounds))
        present: list[bool] = []
        for start in range(0, len(keys), _CALL_KEYS):
            names = [list(self._names(key)) for key in keys[start : start + _CALL_KEYS]]
            present += self._present(names, deadline) if run == 1 else self._present_in_runs(names, deadline, run)
        answers = iter(present)
        going_on: list[Chain] = []
        for chain, asked in zip(chains, rounds, strict=True):
            if chain.take(list(itertools.islice(answers, len(asked)))):
                going_on.append(chain)
            else:
                self._publish(chain)
        return going_on

    def _present_in_runs(self, names: list[list[bytes]], deadline: float, run: int) -> list[bool]:
        """As `_present`, by questions about several keys, and about single ones where not all of them are there."""
        runs = [names[start : start + run] for start in range(0, len(names), run)]
        whole = self._present([list(itertools.chain.from_iterable(keys)) for keys in runs], deadline)
        single = iter(
            self._present(
                [key for keys, all_of in zip(runs, whole, strict=True) if not all_of for key in keys], deadline
            )
        )
        return [all_of or next(single) for keys, all_of in zip(runs, whole, strict=True) for _ in keys]

    def _present(self, groups: list[list[bytes]], deadline: float) -> list[bool]:
        """Whether all names of each group are there.

        Raises:
            _GivenUpError: time was up, or the store is lost, which is noted before anybody hears what it had said: nothing
                of that can be loaded now.
        """
        if not groups:
            return []
        if time.monotonic() >= deadline:
            raise _GivenUpError
        outcomes = self._store.exists_all(groups, deadline)
        answered = Outcome.HIT in outcomes or Outcome.MISS in outcomes
        if not answered or Outcome.STALLED in outcomes:
            self._note(False)
            raise _GivenUpError
        return [outcome is Outcome.HIT for outcome in outcomes]

    def _refresh(self, keys: list[Key]) -> None:
        answers: list[tuple[Key, bool]] | None = None
        try:
            names = [list(self._names(key)) for key in keys]
            outcomes = self._store.exists_all(names, time.monotonic() + self._patience_s, touch=True)
            said = zip(keys, outcomes, strict=True)
            answers = [(key, outcome is Outcome.HIT) for key, outcome in said if outcome in _SAID]
        finally:
            self.refreshed.put(answers)

    def _connect_anew(self) -> None:
        self._store.close()
        self._heartbeat()

    def _heartbeat(self) -> None:
        deadline = time.monotonic() + self._patience_s
        reached = self._store.ping(deadline) is Outcome.HIT
        if reached and self._greeting is not None:
            reached = self._store.exists([self._greeting[0]], deadline)[0] in _SAID
        self._note(reached)

    def _note(self, reached: bool) -> None:
        generation = self._store.generation
        if reached and generation != self.generation and self._greeting is not None:
            name, value = self._greeting
            deadline = time.monotonic() + self._patience_s
            if self._store.exists([name], deadline) == [Outcome.MISS]:
                self._store.put_from([name], [value], deadline)
        self.generation = generation
        self.reachable = reached
        self.tried = True
