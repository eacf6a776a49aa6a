"""Mooncake, through its own client: whole batches in one call.

With a stopped master or store node, calls were seen to last longer than 40 s: `NativeStore` gives them up.
Mooncake's client reconnects by itself, so whether the pool lost its content is seen by a marker: a key of this store's own,
asked for with every question. Asking for a key keeps it from being evicted for ten seconds, and the presence thread asks
every two.
"""

from __future__ import annotations

import mmap
import uuid
from collections.abc import Sequence
from typing import Any

from kvpool_connector.config import MooncakeRemote
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.memory import Memory, address_of
from kvpool_connector.stores.mooncake_client import join, load, replicas
from kvpool_connector.stores.native import NativeStore, name_of

_NO_SPACE, _INVALID, _NOT_READY, _ABSENT, _IN_USE, _NO_MASTER = -200, -600, -703, -704, -706, -900
"""Codes of ``mooncake-store/include/types.h``. A buffer shorter than the value is _INVALID, and so is an empty value. Other
negative codes: no store node, no route."""


class MooncakeStore(NativeStore):
    """One client of the pool."""

    _answers = frozenset({_NO_SPACE, _INVALID, _NOT_READY, _ABSENT, _IN_USE})
    _stale = _NO_MASTER  # also what the first call meets after the master was started anew

    def __init__(
        self, config: MooncakeRemote, breaker: Breaker, memory: Memory | None = None, *, lends: bool = False
    ) -> None:
        """Args:
        memory: where all buffers lie. None: no value will be moved.
        lends: whether this client gives the pool ``segment_size`` bytes of memory.

        Raises:
            ConfigError: the package, a library that it needs, or RDMA devices are missing.
        """
        load(config)
        super().__init__(config.where, breaker, memory)
        self._config, self._lends = config, lends
        self._marker = f"kvpool:client:{uuid.uuid4().hex}"
        self._marked = False
        self._mark = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        """Whose first byte is the marker's value."""

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """One question for all keys."""
        return self._ask(
            lambda native: self._present(native, list(map(name_of, keys)))[0], len(keys), _presence, deadline
        )

    def delete(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Also where somebody has just asked for it, which otherwise keeps a key."""
        return self._ask(
            lambda native: native.batch_remove(list(map(name_of, keys)), True), len(keys), self._change, deadline
        )

    def ping(self, deadline: float) -> Outcome:
        """HIT if the master says anything about the marker: the client's own health check is right with no master, too."""
        (outcome,) = self._ask(lambda native: [self._present(native, [])[1]], 1, _answer, deadline)
        return outcome

    def _join(self) -> Any:
        native = join(self._config, lends=self._lends)
        self._marked = native.register_buffer(address_of(self._mark), len(self._mark)) == 0 and self._put_marker(native)
        return native

    def _leave(self, native: Any) -> None:
        native.close()

    def _register(self, native: Any, address: int, size: int) -> int:
        return int(native.register_buffer(address, size))

    def _read(self, native: Any, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]:
        codes: Sequence[int] = native.batch_get_into(names, places, sizes)
        return codes

    def _write(self, native: Any, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]:
        codes: Sequence[int] = native.batch_put_from(names, places, sizes, replicas(self._config))
        return codes

    @staticmethod
    def _reading(code: int, size: int) -> Outcome:
        if code == size:
            return Outcome.HIT
        if code >= 0 or code == _INVALID:  # a shorter value is read with success, and its own length said
            return Outcome.CORRUPT
        return Outcome.MISS if code in (_ABSENT, _NOT_READY) else Outcome.FAILED

    @staticmethod
    def _change(code: int, size: int = 0) -> Outcome:  # noqa: ARG004 - a removal has none
        return {0: Outcome.HIT, _ABSENT: Outcome.MISS}.get(code, Outcome.FAILED)

    def _present(self, native: Any, names: list[str]) -> tuple[list[int], int]:
        """1 or 0 for each name, and for the marker: if it went, so did the pool's content, or some of it."""
        *codes, marker = native.batch_is_exist([*names, self._marker])
        if marker == 0:
            self._generation += self._marked
            self._marked = self._put_marker(native)
        return codes, marker

    def _put_marker(self, native: Any) -> bool:
        """A pool that is full has no room for it: then nothing is known."""
        return bool(native.put_from(self._marker, address_of(self._mark), 1, replicas(self._config)) == 0)


def _presence(code: int, _: int) -> Outcome:
    return {1: Outcome.HIT, 0: Outcome.MISS}.get(code, Outcome.FAILED)


def _answer(code: int, _: int) -> Outcome:
    return Outcome.FAILED if code < 0 else Outcome.HIT
