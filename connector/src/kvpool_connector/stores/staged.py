"""What stores share that are reached through a package's own client, whose calls may block without a limit.

Each store makes its calls on a thread of its own and gives one up at the deadline. Such a call may still read and write its
buffers, which is why they are never the caller's: values pass through staging memory of the store, with one copy (17 GB/s on
one core). Until it has returned, every other call ends at once with TIMEOUT.
"""

from __future__ import annotations

import abc
import ctypes
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from kvpool_connector.log import get_logger
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.caller import Busy, Caller

logger = get_logger(__name__)

STAGING_BYTES = 32 << 20
"""Staging memory, and so bytes of one call. A larger value makes it grow."""
MOST_KEYS = 128
"""Of one call. Over TCP, Mooncake makes a connection for each value, and some thousand are more than a process may have."""
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
        self._staging = Staging(STAGING_BYTES)
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
    def _change(number: int, code: int) -> Outcome:
        """What a code of `_write` means."""

    @property
    def generation(self) -> int:
        """Changes when the store was joined, and when it was found to have lost content."""
        return self._generation

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Through staging memory, as many keys in one call as fit it."""
        outcomes: list[Outcome] = []
        for turn in _turns([len(buffer) for buffer in buffers]):
            names, sizes, places = self._room(keys[turn], buffers[turn])
            got = self._batch(
                len(names),
                lambda native, names=names, places=places, sizes=sizes: self._read(native, names, places, sizes),  # type: ignore[misc]
                lambda i, code, sizes=sizes: self._reading(code, sizes[i]),  # type: ignore[misc]
                deadline,
            )
            for buffer, place, outcome in zip(buffers[turn], self._staging.views(sizes), got, strict=True):
                if outcome is Outcome.HIT:
                    buffer[:] = place
            outcomes += got
        return outcomes

    def put_from(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Through staging memory. A key that is there keeps its value: HIT, though nothing is written."""
        outcomes: list[Outcome] = []
        for turn in _turns([len(buffer) for buffer in buffers]):
            names, sizes, places = self._room(keys[turn], buffers[turn])
            if not self._caller.busy:  # else what was given up may still send from there
                for buffer, place in zip(buffers[turn], self._staging.views(sizes), strict=True):
                    place[:] = buffer
            outcomes += self._batch(
                len(names),
                lambda native, names=names, places=places, sizes=sizes: self._write(native, names, places, sizes),  # type: ignore[misc]
                self._change,
                deadline,
            )
        return outcomes

    def close(self) -> None:
        """Disconnect. Where a call hangs, it is left to end with the process."""

        def leave() -> None:
            native, self._native, self._registered = self._native, None, 0
            if native is not None:
                self._leave(native)

        try:
            self._caller.call(leave, time.monotonic() + _CLOSE_S)
        except TimeoutError:
            logger.warning("%s: a call hangs; its client is left as it is", self._where)
        self._caller.close()

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
        if not count:
            return []
        if time.monotonic() >= deadline:  # the caller was late, not the store
            return [Outcome.TIMEOUT] * count
        if not self._breaker.allow():
            return [Outcome.FAILED] * count

        def attempt() -> Sequence[int]:
            native = self._joined()
            codes = call(native)
            return call(native) if set(codes) == {self._stale} else codes

        try:
            codes = self._caller.call(attempt, deadline)
        except TimeoutError as fault:
            self._fault("an earlier call has not returned" if isinstance(fault, Busy) else "no answer in time")
            return [Outcome.TIMEOUT] * count
        except (OSError, RuntimeError) as fault:  # of ours; of the binding
            self._fault(str(fault))
            return [Outcome.FAILED] * count
        outcomes = [verdict(number, code) for number, code in enumerate(codes)]
        if all(o is Outcome.FAILED and code not in self._answers for o, code in zip(outcomes, codes, strict=True)):
            self._fault(f"its client says {codes[0]}")
        elif self._breaker.succeeded():
            logger.warning("%s answers again", self._where)
        return outcomes

    def _fault(self, what: str) -> None:
        if self._breaker.failed():
            logger.warning("%s: %s; blocks are computed until it answers", self._where, what)

    def _room(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> tuple[list[str], list[int], list[int]]:
        """Names, sizes, and addresses in staging memory, which grows if nobody uses it."""
        sizes = [len(buffer) for buffer in buffers]
        if not self._caller.busy and sum(sizes) > self._staging.size:
            self._staging = Staging(sum(sizes))
        return [name_of(key) for key in keys], sizes, self._staging.places(sizes)

    def _joined(self) -> Any:
        if self._native is None:
            self._native = self._join()
            self._generation += 1
        if self._registered != self._staging.address:
            if (code := self._register(self._native, self._staging, self._registered)) < 0:
                raise OSError(f"memory cannot be registered (code {code})")
            self._registered = self._staging.address
        return self._native


class Staging:
    """Memory that calls read and write, page-aligned."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(-1, size)
        self._view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def places(self, sizes: Sequence[int]) -> list[int]:
        """Addresses of values of these sizes, one behind the other."""
        return [self.address + start for start, _ in _ranges(sizes)]

    def views(self, sizes: Sequence[int]) -> list[memoryview]:
        """The memory at `places`. For sizes beyond it, where a call that hangs kept it from growing, shorter ones."""
        return [self._view[start:end] for start, end in _ranges(sizes)]


def name_of(key: bytes) -> str:
    """These clients' keys are text. A part's name is ASCII and stays as it is; any other byte is one character too."""
    return key.decode("latin-1")


def _ranges(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    end = 0
    for size in sizes:
        yield end, end + size
        end += size


def _turns(sizes: Sequence[int]) -> Iterator[slice]:
    """Neighbours that fit one call and staging memory; a larger value has a turn of its own."""
    start = total = 0
    for position, size in enumerate(sizes):
        if position - start == MOST_KEYS or (position > start and total + size > STAGING_BYTES):
            yield slice(start, position)
            start, total = position, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))
