"""What stores share that are reached through a package's own client, whose calls may block without a limit.

Each store makes its calls on a thread of its own and gives one up at the deadline. Such a call may still read and write its
buffers, which is why they are never the caller's: values pass through staging memory of the store, with one copy, which is
made while another call runs. Until it has returned, every other call ends at once with TIMEOUT.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from kvpool_connector.log import get_logger
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.caller import Call, Caller
from kvpool_connector.stores.staging import HALF_BYTES, Staging, Turn

logger = get_logger(__name__)

_CLOSE_S = 2.0


class StagedStore(abc.ABC):
    """A client with staging memory and a thread for its calls. Methods whose first argument is ``native`` run on that thread."""

    _answers: ClassVar[frozenset[int]]
    """Codes below 0 that a store says which works."""
    _stale: ClassVar[int | None] = None
    """What all keys of a call say whose connection went while it was idle: it is made once more."""

    def __init__(self, where: str, breaker: Breaker) -> None:
        """Args:
        where: names the store in the log; no credentials.
        """
        self._where, self._breaker = where, breaker
        self._caller = Caller("store")
        self._native: Any = None
        self._staging = Staging(HALF_BYTES)
        self._registered = 0  # address of the staging memory that the client knows
        self._generation = 0

    @abc.abstractmethod
    def _join(self) -> Any:
        """The package's client, connected.

        Raises:
            OSError: it cannot be.
        """

    @abc.abstractmethod
    def _leave(self, native: Any) -> None:
        """Disconnect."""

    @abc.abstractmethod
    def _register(self, native: Any, staging: Staging, before: int) -> int:
        """Make staging memory known, in place of what was at the address ``before`` (0: nothing was). Returns a code, 0 or
        more if all is well."""

    @abc.abstractmethod
    def _read(self, native: Any, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]:
        """Fill places; a code for each."""

    @abc.abstractmethod
    def _write(self, native: Any, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]:
        """Store places; a code for each."""

    @staticmethod
    @abc.abstractmethod
    def _reading(code: int, size: int) -> Outcome:
        """What a code of `_read` means for a buffer of this size."""

    @staticmethod
    @abc.abstractmethod
    def _change(code: int, size: int = 0) -> Outcome:
        """What a code of `_write` or of a removal means."""

    @property
    def generation(self) -> int:
        """Changes when the store was joined, and when it was found to have lost content."""
        return self._generation

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Through staging memory."""

        def settle(turn: Turn, outcomes: Sequence[Outcome]) -> None:
            for buffer, place, outcome in zip(buffers[turn.part], turn.views, outcomes, strict=True):
                if outcome is Outcome.HIT:
                    buffer[:] = place

        sizes = [len(buffer) for buffer in buffers]
        return self._in_turns(keys, sizes, self._read, self._reading, deadline, lambda turn: None, settle)

    def put_from(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Through staging memory. A key that is there keeps its value: HIT, though nothing is written."""

        def prepare(turn: Turn) -> None:
            for buffer, place in zip(buffers[turn.part], turn.views, strict=True):
                place[:] = buffer

        sizes = [len(buffer) for buffer in buffers]
        return self._in_turns(keys, sizes, self._write, self._change, deadline, prepare, lambda turn, outcomes: None)

    def close(self) -> None:
        """Disconnect. Where a call hangs, it is left to end with the process."""

        def leave() -> None:
            native, self._native, self._registered = self._native, None, 0
            if native is not None:
                self._leave(native)

        try:
            self._caller.begin(leave).result(time.monotonic() + _CLOSE_S)
        except TimeoutError:
            logger.warning("%s: a call hangs; its client is left as it is", self._where)
        self._caller.close()

    def _in_turns(
        self,
        keys: Sequence[bytes],
        sizes: Sequence[int],
        move: Callable[[Any, list[str], list[int], list[int]], Sequence[int]],
        verdict: Callable[[int, int], Outcome],
        deadline: float,
        prepare: Callable[[Turn], None],
        settle: Callable[[Turn, Sequence[Outcome]], None],
    ) -> list[Outcome]:
        """One outcome per key, whatever happens; what is left after a fault shares one outcome.

        Args:
            move: makes the call of a turn: `_read` or `_write`.
            verdict: the outcome of a key by its code and size.
            prepare: fills a turn's part of staging memory. While the call of the turn before runs, if there is one.
            settle: takes a turn's values from there, by its outcomes. While the call of the next turn runs, if there is one.
        """

        def of_turn(turn: Turn) -> Callable[[Any], Sequence[int]]:
            return lambda native: move(native, turn.names, turn.places, turn.sizes)

        def judge(turn: Turn) -> Callable[[int, int], Outcome]:
            return lambda number, code: verdict(code, turn.sizes[number])

        if (refused := self._refused(len(keys), deadline)) is not None:
            return refused
        if not self._staging.fits(sizes):
            self._staging = Staging(max(sizes))
        turns = self._staging.turns(keys, sizes)
        outcomes: list[Outcome] = []
        ended: tuple[Turn, list[Outcome]] | None = None
        prepare(turns[0])
        for following, turn in enumerate(turns, 1):
            if time.monotonic() >= deadline:  # the caller asked for more than there was time for
                outcomes.append(Outcome.TIMEOUT)
                break
            call = self._begin(of_turn(turn))
            if ended is not None:
                settle(*ended)
            if following < len(turns):
                prepare(turns[following])
            got, well = self._end(call, len(turn.names), judge(turn), deadline)
            ended = turn, got
            outcomes += got
            if not well:
                break
        if ended is not None:
            settle(*ended)
        return outcomes + outcomes[-1:] * (len(keys) - len(outcomes))

    def _batch(
        self,
        count: int,
        call: Callable[[Any], Sequence[int]],
        verdict: Callable[[int, int], Outcome],
        deadline: float,
    ) -> list[Outcome]:
        """One outcome per key, whatever happens.

        Args:
            call: makes one call of the client, on the thread for calls; returns a code per key.
            verdict: the outcome of a key by its number and code.
        """
        if (refused := self._refused(count, deadline)) is not None:
            return refused
        return self._end(self._begin(call), count, verdict, deadline)[0]

    def _refused(self, count: int, deadline: float) -> list[Outcome] | None:
        """What is said of the keys of a batch without a call. None: a call may begin."""
        if not count:
            return []
        if time.monotonic() >= deadline:  # the caller was late, not the store
            return [Outcome.TIMEOUT] * count
        if not self._breaker.allow():
            return [Outcome.FAILED] * count
        if self._caller.busy:
            self._fault("an earlier call has not returned")
            return [Outcome.TIMEOUT] * count
        return None

    def _begin(self, call: Callable[[Any], Sequence[int]]) -> Call[Sequence[int]]:
        def attempt() -> Sequence[int]:
            native = self._joined()
            codes = call(native)
            return call(native) if set(codes) == {self._stale} else codes

        return self._caller.begin(attempt)

    def _end(
        self, call: Call[Sequence[int]], count: int, verdict: Callable[[int, int], Outcome], deadline: float
    ) -> tuple[list[Outcome], bool]:
        """Outcomes of its keys, and whether the store works."""
        try:
            codes = call.result(deadline)
        except TimeoutError:
            self._fault("no answer in time")
            return [Outcome.TIMEOUT] * count, False
        except (OSError, RuntimeError) as fault:  # of ours; of the binding
            self._fault(str(fault))
            return [Outcome.FAILED] * count, False
        outcomes = [verdict(number, code) for number, code in enumerate(codes)]
        if all(o is Outcome.FAILED and code not in self._answers for o, code in zip(outcomes, codes, strict=True)):
            self._fault(f"its client says {codes[0]}")
            return outcomes, False
        if self._breaker.succeeded():
            logger.warning("%s answers again", self._where)
        return outcomes, True

    def _fault(self, what: str) -> None:
        if self._breaker.failed():
            logger.warning("%s: %s; blocks are computed until it answers", self._where, what)

    def _joined(self) -> Any:
        if self._native is None:
            self._native = self._join()
            self._generation += 1
        if self._registered != self._staging.address:
            if (code := self._register(self._native, self._staging, self._registered)) < 0:
                raise OSError(f"memory cannot be registered (code {code})")
            self._registered = self._staging.address
        return self._native
