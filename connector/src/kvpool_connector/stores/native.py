"""What stores share that are reached through a package's own client, whose calls may block without a limit.

Each store makes its calls on a thread of its own and gives one up at the deadline; until it has returned, every other call
ends at once with TIMEOUT. Values pass straight from and to buffers in memory that the client knows as a whole, so a call that
was given up may still use the buffers that it was given: they are `lent`, and of a read they are few.
"""

from __future__ import annotations

import abc
import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from kvpool_connector.log import get_logger
from kvpool_connector.stores.base import Loan, Outcome, all_there
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.caller import Caller
from kvpool_connector.stores.memory import Memory, address_of

logger = get_logger(__name__)

MOST_KEYS = 128
"""Of one call. Over TCP, Mooncake makes a connection for each value, and some thousand are more than a process may have."""
_CLOSE_S = 2.0
HANG_S = 1.0
"""A call that has not returned for so long hangs, and the store is left alone for a while. One that was
given up earlier says nothing about the store: the caller had little time."""

Codes = Callable[[Any], Sequence[int]]
"""Makes one call of the client, which it is given; returns a code for each key."""


class _Move(Protocol):
    """`_read` or `_write`."""

    def __call__(self, native: Any, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]: ...


class NativeStore(abc.ABC):
    """A client and a thread for its calls. Methods whose first argument is ``native`` run on that thread."""

    _answers: ClassVar[frozenset[int]]
    """Codes below 0 that a store says which works."""
    _stale: ClassVar[int | None] = None
    """What all keys of a call say whose connection went while it was idle: it is made once more."""

    def __init__(self, where: str, breaker: Breaker, memory: Memory | None) -> None:
        """Args:
        where: names the store in the log; no credentials.
        memory: where all buffers lie. None: it is only asked.
        """
        self._where, self._breaker, self._memory = where, breaker, memory
        self._caller = Caller("store")
        self._native: Any = None
        self._generation = 0
        self._lent: Loan | None = None
        self.errors: Counter[str] = Counter()
        """See `Store`. These clients say numbers, and a number that is a refusal is FAILED."""

    @abc.abstractmethod
    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """See `Store`."""

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
    def _register(self, native: Any, address: int, size: int) -> int:
        """Make memory known. Returns a code, 0 or more if all is well."""

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

    @property
    def lent(self) -> Loan | None:
        """What the call that was given up in the last batch was given; nothing once it has returned."""
        return self._lent if self._caller.busy else None

    def exists_all(self, groups: Sequence[Sequence[bytes]], deadline: float, *, touch: bool = False) -> list[Outcome]:
        """One call for all names. Asking is using, as far as is known of these stores."""
        return all_there(groups, lambda names: self.exists(names, deadline))

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """A few at a time: no more are ever lent."""
        return self._move(self._read, self._reading, self._known.most_lent, keys, buffers, deadline)

    def put_from(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """A key that is there keeps its value: HIT, though nothing is written."""
        return self._move(self._write, self._change, MOST_KEYS, keys, buffers, deadline)

    @property
    def _known(self) -> Memory:
        if self._memory is None:
            raise ValueError("this client was made without memory: it can only ask")
        return self._memory

    def close(self) -> None:
        """Disconnect. Where a call hangs, it is left to end with the process."""

        def leave() -> None:
            native, self._native = self._native, None
            if native is not None:
                self._leave(native)

        try:
            self._caller.begin(leave).result(time.monotonic() + _CLOSE_S)
        except TimeoutError:
            logger.warning("%s: a call hangs; its client is left as it is", self._where)
        self._caller.close()

    def _move(
        self,
        move: _Move,
        verdict: Callable[[int, int], Outcome],
        most: int,
        keys: Sequence[bytes],
        buffers: Sequence[memoryview],
        deadline: float,
    ) -> list[Outcome]:
        """One outcome per key, whatever happens; what is left after a fault shares one outcome.

        Args:
            verdict: the outcome of a key by its code and size.
            most: keys of one call; never more than `MOST_KEYS`.
        """
        self._lent = None
        outcomes: list[Outcome] = []
        for start in range(0, len(keys), min(most, MOST_KEYS)):
            part = slice(start, start + min(most, MOST_KEYS))
            sizes = list(map(len, buffers[part]))
            places = self._known.places(buffers[part])
            call = functools.partial(move, names=list(map(name_of, keys[part])), places=places, sizes=sizes)
            got, works = self._call(call, sizes, verdict, deadline, start)
            outcomes += got
            if not works:
                break
        return outcomes + outcomes[-1:] * (len(keys) - len(outcomes))

    def _ask(self, call: Codes, count: int, verdict: Callable[[int, int], Outcome], deadline: float) -> list[Outcome]:
        """One outcome per key of a call that moves no values."""
        return self._call(call, [0] * count, verdict, deadline)[0] if count else []

    def _call(
        self,
        codes_of: Codes,
        sizes: Sequence[int],
        verdict: Callable[[int, int], Outcome],
        deadline: float,
        start: int | None = None,
    ) -> tuple[list[Outcome], bool]:
        """An outcome for each size, and whether the store works.

        Args:
            start: where in its batch the first key stands whose buffer is used; None: the call uses no buffers.
        """

        def attempt() -> Sequence[int]:
            native = self._joined()
            codes = codes_of(native)
            return codes_of(native) if set(codes) == {self._stale} else codes

        if (refused := self._refused(deadline)) is not None:
            return [refused] * len(sizes), False
        call = self._caller.begin(attempt)
        try:
            codes = call.result(deadline)
        except TimeoutError:
            if start is not None:
                self._lent = Loan(range(start, start + len(sizes)), call.then)
            if call.age_s >= HANG_S:
                self._fault(f"no answer for {HANG_S:g} s")
            return [Outcome.TIMEOUT] * len(sizes), False
        except (OSError, RuntimeError) as fault:  # of ours; of the binding
            self._fault(str(fault))
            return [Outcome.FAILED] * len(sizes), False
        outcomes = list(map(verdict, codes, sizes))
        if all(o is Outcome.FAILED and code not in self._answers for o, code in zip(outcomes, codes, strict=True)):
            self._fault(f"its client says {codes[0]}")
            return outcomes, False
        if self._breaker.succeeded():
            logger.warning("%s answers again", self._where)
        return outcomes, True

    def _refused(self, deadline: float) -> Outcome | None:
        """Why no call may begin."""
        if time.monotonic() >= deadline:  # the caller was late, not the store
            return Outcome.TIMEOUT
        if not self._breaker.allow():
            return Outcome.FAILED
        if (earlier := self._caller.running) is None:
            return None
        if earlier.ends(min(deadline, earlier.began + HANG_S)):
            return None
        if earlier.age_s >= HANG_S:
            self._fault(f"an earlier call has not returned for {earlier.age_s:.0f} s")
        return Outcome.TIMEOUT

    def _fault(self, what: str) -> None:
        if self._breaker.failed():
            logger.warning("%s: %s; blocks are computed until it answers", self._where, what)

    def _joined(self) -> Any:
        if self._native is None:
            native = self._join()
            if self._memory is not None:
                code = self._register(native, address_of(self._memory.view), len(self._memory.view))
                if code < 0:
                    self._leave(native)
                    raise OSError(f"memory cannot be registered (code {code})")
            self._native = native
            self._generation += 1
        return self._native


def name_of(key: bytes) -> str:
    """These clients' keys are text. A part's name is ASCII and stays as it is; any other byte is one character too."""
    return key.decode("latin-1")
