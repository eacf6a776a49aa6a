"""Mooncake, through its own client: whole batches in one call.

Its calls may block without a limit: with a stopped master or store node, one was seen to last longer than 40 s. So each store makes
them on a thread of its own and gives a call up at the deadline. Such a call may still read and write its buffers, which is why they are
never the caller's: values pass through staging memory of the store, with one copy (17 GB/s where Mooncake moves 1 to 3 over TCP). Until
it has returned, every other call ends at once with TIMEOUT.

Mooncake's client reconnects by itself, so whether the pool lost its content is seen by a marker: a key of this store's own, asked for
with every question. Asking for a key keeps it from being evicted for ten seconds, and the presence thread asks every two.
"""

from __future__ import annotations

import ctypes
import mmap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kvpool_connector.config import MooncakeRemote
from kvpool_connector.log import get_logger
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.caller import Busy, Caller
from kvpool_connector.stores.mooncake_client import join, load, replicas

logger = get_logger(__name__)

STAGING_BYTES = 32 << 20
"""Staging memory, and so bytes of one call. A larger value makes it grow."""
_MOST_KEYS = 128
"""Of one call: over TCP each value has a connection of its own, and some thousand are more than a process may have."""
_NO_SPACE, _INVALID, _NOT_READY, _ABSENT, _IN_USE = -200, -600, -703, -704, -706
"""Codes of ``mooncake-store/include/types.h``. A buffer shorter than the value is _INVALID, and so is an empty value."""
_NO_MASTER = -900
_ANSWERS = {_NO_SPACE, _INVALID, _NOT_READY, _ABSENT, _IN_USE}
"""What a pool says that works. Other negative codes: no master, no store node, no route."""
_CLOSE_S = 2.0


class MooncakeStore:
    """One client of the pool, with staging memory and a thread for its calls."""

    def __init__(self, config: MooncakeRemote, breaker: Breaker, *, lends: bool = False) -> None:
        """Args:
        lends: whether this client gives the pool ``segment_size`` bytes of memory.

        Raises:
            ConfigError: the package, a library that it needs, or RDMA devices are missing.
        """
        load(config)
        self._config, self._breaker, self._lends = config, breaker, lends
        self._caller = Caller("kvpool-mooncake")
        self._native: Any = None
        self._staging = _Staging(STAGING_BYTES)
        self._registered = 0  # address of the staging memory that the client knows
        self._marker = f"kvpool:client:{uuid.uuid4().hex}"
        self._marked = False
        self._generation = 0

    @property
    def generation(self) -> int:
        """Changes when the pool was joined, and when it lost this client's marker and so other content too."""
        return self._generation

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """One question for all keys."""
        return self._batch(
            len(keys), lambda native: self._present(native, [_name(key) for key in keys])[0], _presence, deadline
        )

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Through staging memory, as many keys in one call as fit it."""
        outcomes: list[Outcome] = []
        for turn in _turns([len(buffer) for buffer in buffers]):
            names = [_name(key) for key in keys[turn]]
            sizes = [len(buffer) for buffer in buffers[turn]]
            room = self._room(sizes, deadline)
            got = self._batch(
                len(names),
                lambda native, names=names, sizes=sizes, room=room: native.batch_get_into(names, room, sizes),  # type: ignore[misc]
                lambda i, code, sizes=sizes: _reading(code, sizes[i]),  # type: ignore[misc]
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
            names = [_name(key) for key in keys[turn]]
            sizes = [len(buffer) for buffer in buffers[turn]]
            room = self._room(sizes, deadline)
            if not self._caller.busy:  # else what was given up may still send from there
                for buffer, place in zip(buffers[turn], self._staging.views(sizes), strict=True):
                    place[:] = buffer
            outcomes += self._batch(
                len(names),
                lambda native, names=names, sizes=sizes, room=room: native.batch_put_from(  # type: ignore[misc]
                    names, room, sizes, replicas(self._config)
                ),
                _change,
                deadline,
            )
        return outcomes

    def delete(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Also where somebody has just asked for it, which otherwise keeps a key."""
        return self._batch(
            len(keys), lambda native: native.batch_remove([_name(key) for key in keys], True), _change, deadline
        )

    def ping(self, deadline: float) -> Outcome:
        """HIT if the master says anything about the marker: the client's own health check is right with no master, too."""
        return self._batch(
            1,
            lambda native: [self._present(native, [])[1]],
            lambda _, code: Outcome.FAILED if code < 0 else Outcome.HIT,
            deadline,
        )[0]

    def close(self) -> None:
        """Leave the pool. Where a call hangs, it is left to end with the process."""
        try:
            self._caller.call(self._leave, time.monotonic() + _CLOSE_S)
        except TimeoutError:
            logger.warning("%s: a call hangs; its client is left as it is", self._config.where)
        self._caller.close()

    # ---- on the user's thread ---------------------------------------------------------------------------------

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
        if time.monotonic() >= deadline:  # the caller was late, not the pool
            return [Outcome.TIMEOUT] * count
        if not self._breaker.allow():
            return [Outcome.FAILED] * count
        idle = self._breaker.closed

        def attempt() -> Sequence[int]:
            native = self._joined()
            codes = call(native)
            # The first call after the master was started anew meets a connection that it does not know.
            return call(native) if idle and set(codes) == {_NO_MASTER} else codes

        try:
            codes = self._caller.call(attempt, deadline)
        except TimeoutError as fault:
            self._fault("an earlier call has not returned" if isinstance(fault, Busy) else "no answer in time")
            return [Outcome.TIMEOUT] * count
        except (OSError, RuntimeError) as fault:  # of ours; of the binding
            self._fault(str(fault))
            return [Outcome.FAILED] * count
        outcomes = [verdict(number, code) for number, code in enumerate(codes)]
        if all(outcome is Outcome.FAILED and code not in _ANSWERS for outcome, code in zip(outcomes, codes, strict=True)):
            self._fault(f"its client says {codes[0]}")
        elif self._breaker.succeeded():
            logger.warning("%s answers again", self._config.where)
        return outcomes

    def _fault(self, what: str) -> None:
        if self._breaker.failed():
            logger.warning("%s: %s; blocks are computed until it answers", self._config.where, what)

    def _room(self, sizes: Sequence[int], deadline: float) -> list[int]:
        """Addresses in staging memory for values of these sizes."""
        if not self._caller.busy and sum(sizes) > self._staging.size:
            self._staging = _Staging(sum(sizes))
        return self._staging.places(sizes)

    # ---- on the thread for calls ------------------------------------------------------------------------------

    def _joined(self) -> Any:
        if self._native is None:
            self._native = join(self._config, lends=self._lends)
            self._generation += 1
        if self._registered != self._staging.address:
            first = not self._registered
            if self._registered:
                self._native.unregister_buffer(self._registered)
            if code := self._native.register_buffer(self._staging.address, self._staging.size):
                raise OSError(f"memory cannot be registered (code {code})")
            self._registered = self._staging.address
            if first:
                self._mark(self._native)
        return self._native

    def _present(self, native: Any, names: list[str]) -> tuple[list[int], int]:
        """1 or 0 for each name, and for the marker: if it went, so did the pool's content, or some of it."""
        *codes, marker = native.batch_is_exist([*names, self._marker])
        if marker == 0 and self._marked:
            self._generation += 1
        if marker == 0:
            self._mark(native)
        return codes, marker

    def _mark(self, native: Any) -> None:
        """With one byte of whatever is in staging memory. A pool that is full has no room for it: then nothing is known."""
        code = native.put_from(self._marker, self._staging.address, 1, replicas(self._config))
        self._marked = code == 0

    def _leave(self) -> None:
        native, self._native, self._registered = self._native, None, 0
        if native is not None:
            native.close()


class _Staging:
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
        """The memory at `places`."""
        return [self._view[start:end] for start, end in _ranges(sizes)]


def _ranges(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    end = 0
    for size in sizes:
        yield end, end + size
        end += size


def _turns(sizes: Sequence[int]) -> Iterator[slice]:
    """Neighbours that fit one call and staging memory; a larger value has a turn of its own."""
    start = total = 0
    for position, size in enumerate(sizes):
        if position - start == _MOST_KEYS or (position > start and total + size > STAGING_BYTES):
            yield slice(start, position)
            start, total = position, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _name(key: bytes) -> str:
    """Mooncake's keys are text. A part's name is ASCII and stays as it is; any other byte is one character too."""
    return key.decode("latin-1")


def _presence(_: int, code: int) -> Outcome:
    return {1: Outcome.HIT, 0: Outcome.MISS}.get(code, Outcome.FAILED)


def _change(_: int, code: int) -> Outcome:
    return {0: Outcome.HIT, _ABSENT: Outcome.MISS}.get(code, Outcome.FAILED)


def _reading(code: int, size: int) -> Outcome:
    if code == size:
        return Outcome.HIT
    if code >= 0 or code == _INVALID:  # a shorter value is read with success, and its own length said
        return Outcome.CORRUPT
    return Outcome.MISS if code in (_ABSENT, _NOT_READY) else Outcome.FAILED
