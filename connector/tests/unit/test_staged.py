"""Batches in turns through staging memory. The client is a stand-in, so that a call can hang or fail where a test says; real
ones run in connector/tests/store."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from kvpool_connector.stores import Breaker, Outcome
from kvpool_connector.stores.staged import StagedStore
from kvpool_connector.stores.staging import HALF_BYTES, MOST_KEYS, Staging
from testkit.servers import wait_until

HIT, MISS, FAILED, TIMEOUT = Outcome.HIT, Outcome.MISS, Outcome.FAILED, Outcome.TIMEOUT
LARGE = HALF_BYTES // 2
"""Two of them make a turn."""


class Client:
    """A dictionary behind calls that move bytes at addresses."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.calls: list[list[str]] = []

    def before(self, call: int) -> None:
        """Called at the beginning of each call, with its number: may wait or raise."""

    def read(self, names: Sequence[str], places: Sequence[int], sizes: Sequence[int]) -> list[int]:
        self._begin(names)
        for name, place, size in zip(names, places, sizes, strict=True):
            if name in self.data:
                ctypes.memmove(place, self.data[name], size)
        return [0 if name in self.data else -1 for name in names]

    def write(self, names: Sequence[str], places: Sequence[int], sizes: Sequence[int]) -> list[int]:
        self._begin(names)
        for name, place, size in zip(names, places, sizes, strict=True):
            self.data[name] = ctypes.string_at(place, size)
        return [0] * len(names)

    def _begin(self, names: Sequence[str]) -> None:
        self.calls.append(list(names))
        self.before(len(self.calls))


class Store(StagedStore):
    """Over the stand-in."""

    _answers = frozenset({-1})

    def __init__(self) -> None:
        super().__init__("a store", Breaker())
        self.client = Client()

    def _join(self) -> Any:
        return self.client

    def _leave(self, native: Any) -> None:
        pass

    def _register(self, native: Any, staging: Staging, before: int) -> int:
        return 0

    def _read(self, native: Client, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]:
        return native.read(names, places, sizes)

    def _write(self, native: Client, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]:
        return native.write(names, places, sizes)

    @staticmethod
    def _reading(code: int, size: int) -> Outcome:  # noqa: ARG004 - as the class has it
        return HIT if code == 0 else MISS if code == -1 else FAILED

    @staticmethod
    def _change(code: int, size: int = 0) -> Outcome:  # noqa: ARG004 - as the class has it
        return HIT if code == 0 else FAILED


@pytest.fixture
def store() -> Iterator[Store]:
    """Closed at the end."""
    it = Store()
    yield it
    it.close()


def values(count: int, size: int = LARGE) -> tuple[list[bytes], list[memoryview]]:
    """Each of one byte of its own."""
    keys = [b"k%d" % number for number in range(count)]
    return keys, [memoryview(bytearray([1 + number % 200]) * size) for number in range(count)]


def buffers(count: int, size: int = LARGE) -> list[memoryview]:
    """Zeros."""
    return [memoryview(bytearray(size)) for _ in range(count)]


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


def test_a_batch_of_several_turns(store: Store) -> None:
    """Every value arrives in its buffer; a call moves what fits one half."""
    keys, rows = values(7)
    assert store.put_from(keys, rows, soon()) == [HIT] * 7
    assert [len(call) for call in store.client.calls] == [2, 2, 2, 1]
    del store.client.data["k3"]
    read = buffers(7)
    assert store.get_into(keys, read, soon()) == [HIT, HIT, HIT, MISS, HIT, HIT, HIT]
    assert [bytes(one) for one in read] == [bytes(LARGE) if n == 3 else bytes(row) for n, row in enumerate(rows)]


def test_many_small_values(store: Store) -> None:
    """A call has at most so many keys."""
    keys, rows = values(2 * MOST_KEYS + 1, 8)
    assert set(store.put_from(keys, rows, soon())) == {HIT}
    assert [len(call) for call in store.client.calls] == [MOST_KEYS, MOST_KEYS, 1]
    read = buffers(len(keys), 8)
    assert set(store.get_into(keys, read, soon())) == {HIT}
    assert read == rows


def test_a_turn_is_copied_while_the_next_one_is_called(store: Store) -> None:
    """The call's time hides the copy's."""
    keys, rows = values(4)
    store.put_from(keys, rows, soon())
    read = buffers(4)

    def before(call: int) -> None:
        if call == 4:
            wait_until("the first turn was copied", lambda: read[:2] == rows[:2], 10)

    store.client.before = before  # type: ignore[method-assign]
    assert store.get_into(keys, read, soon()) == [HIT] * 4


@pytest.mark.parametrize("verb", ["get", "put"])
def test_a_call_that_fails_ends_the_batch(store: Store, verb: str) -> None:
    """What was moved before it is there, and the rest is not tried: the store is given a rest."""
    keys, rows = values(6)
    store.put_from(keys, rows, soon())
    store.client.calls.clear()

    def before(call: int) -> None:
        if call == 2:
            raise OSError("gone")

    store.client.before = before  # type: ignore[method-assign]
    read = buffers(6)
    outcomes = store.get_into(keys, read, soon()) if verb == "get" else store.put_from(keys, rows, soon())
    assert outcomes == [HIT, HIT, FAILED, FAILED, FAILED, FAILED]
    assert len(store.client.calls) == 2
    assert verb == "put" or (read[:2] == rows[:2] and read[2:] == buffers(4))


def test_a_call_that_is_given_up_writes_to_no_buffer_of_ours(store: Store) -> None:
    """Neither to those of its own batch nor, when it goes on, to those of a later one; until then nobody waits for it."""
    keys, rows = values(6)
    store.put_from(keys, rows, soon())
    store.client.calls.clear()
    go = threading.Event()

    def before(call: int) -> None:
        if call == 2:
            go.wait(10)

    store.client.before = before  # type: ignore[method-assign]
    read = buffers(6)
    assert store.get_into(keys, read, soon(0.2)) == [HIT, HIT, TIMEOUT, TIMEOUT, TIMEOUT, TIMEOUT]
    time.sleep(0.4)  # the breaker lets one call through
    later = buffers(6)
    begin = time.monotonic()
    assert set(store.get_into(keys, later, soon())) <= {TIMEOUT, FAILED}
    assert set(store.put_from(keys, rows, soon())) <= {TIMEOUT, FAILED}
    assert time.monotonic() - begin < 0.5
    go.set()
    wait_until("it is used again", lambda: store.get_into(keys, later, soon()) == [HIT] * 6)
    assert later == rows
    assert read[:2] == rows[:2]
    assert read[2:] == buffers(4)
