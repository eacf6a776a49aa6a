"""Calls of a package's own client: in turns, failing, given up. The client is a stand-in, so that a call can hang or fail where a
test says; real ones run in connector/tests/store."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter

from kvpool_connector.config import RemoteStore
from kvpool_connector.stores import Breaker, Memory, Outcome
from kvpool_connector.stores import native as native_module
from kvpool_connector.stores.factory import most_lent
from kvpool_connector.stores.native import HANG_S, MOST_KEYS, NativeStore
from testkit.patience import PATIENCE_S, promptly
from testkit.servers import wait_until

HIT, MISS, FAILED, TIMEOUT = Outcome.HIT, Outcome.MISS, Outcome.FAILED, Outcome.TIMEOUT
SIZE, MOST_LENT, MIB = 4096, 2, 1 << 20


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


class Store(NativeStore):
    """Over the stand-in."""

    _answers = frozenset({-1})

    def __init__(self, memory: Memory | None) -> None:
        super().__init__("a store", Breaker(), memory)
        self.client = Client()
        self.registered: list[tuple[int, int]] = []
        self.registers = 0
        """The code that it gets."""
        self.left = 0
        self.hangs = ""
        """The entry of the client that does not return before `go`."""
        self.go = threading.Event()

    def _enter(self, entry: str) -> None:
        if self.hangs == entry:
            self.go.wait(PATIENCE_S)

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        return self._ask(lambda native: [0] * len(keys), len(keys), self._change, deadline)

    def _join(self) -> Any:
        self._enter("join")
        return self.client

    def _leave(self, native: Any) -> None:
        self._enter("leave")
        self.left += 1

    def _register(self, native: Any, address: int, size: int) -> int:
        self._enter("register")
        self.registered.append((address, size))
        return self.registers

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


MEMORY = Memory(memoryview(mmap.mmap(-1, 4 * MOST_KEYS * SIZE)), MOST_LENT)


@pytest.fixture
def store() -> Iterator[Store]:
    """Closed at the end."""
    it = Store(MEMORY)
    yield it
    it.close()


def buffers(first: int, count: int) -> list[memoryview]:
    """Zeros."""
    rows = [MEMORY.view[number * SIZE : (number + 1) * SIZE] for number in range(first, first + count)]
    for row in rows:
        row[:] = bytes(SIZE)
    return rows


def values(count: int) -> tuple[list[bytes], list[memoryview]]:
    """Each of one byte of its own, in the first buffers."""
    rows = buffers(0, count)
    for number, row in enumerate(rows):
        row[:] = bytes([1 + number % 200]) * SIZE
    return [b"k%d" % number for number in range(count)], rows


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


def test_a_batch_of_several_turns(store: Store) -> None:
    """Every value arrives in its buffer; one call reads no more than may be lent."""
    keys, rows = values(7)
    assert store.put_from(keys, rows, soon()) == [HIT] * 7
    assert [len(call) for call in store.client.calls] == [7]
    del store.client.data["k3"]
    read = buffers(10, 7)
    assert store.get_into(keys, read, soon()) == [HIT, HIT, HIT, MISS, HIT, HIT, HIT]
    assert [len(call) for call in store.client.calls] == [7, 2, 2, 2, 1]
    assert [bytes(one) for one in read] == [bytes(SIZE) if n == 3 else bytes(row) for n, row in enumerate(rows)]
    assert store.registered == [(MEMORY.places(rows)[0], len(MEMORY.view))]
    assert store.lent is None


def test_many_small_values(store: Store) -> None:
    """A call has at most so many keys."""
    keys, rows = values(2 * MOST_KEYS + 1)
    assert set(store.put_from(keys, rows, soon())) == {HIT}
    assert [len(call) for call in store.client.calls] == [MOST_KEYS, MOST_KEYS, 1]
    assert set(store.client.data) == {key.decode() for key in keys}


@pytest.mark.parametrize("verb", ["get", "put"])
def test_a_call_that_fails_ends_the_batch(store: Store, verb: str) -> None:
    """What was moved before it is there, and the rest is not tried: the store is given a rest. Nothing is lent: it returned."""
    keys, rows = values(2 * MOST_KEYS)
    store.put_from(keys, rows, soon())
    store.client.calls.clear()

    def before(call: int) -> None:
        if call == 2:
            raise OSError("gone")

    store.client.before = before  # type: ignore[method-assign]
    read = buffers(2 * MOST_KEYS, 2 * MOST_KEYS)
    outcomes = store.get_into(keys, read, soon()) if verb == "get" else store.put_from(keys, rows, soon())
    moved = MOST_LENT if verb == "get" else MOST_KEYS
    assert outcomes == [HIT] * moved + [FAILED] * (len(keys) - moved)
    assert len(store.client.calls) == 2
    assert store.lent is None
    assert verb == "put" or read[:moved] == rows[:moved]


def test_a_read_that_is_given_up_lends_its_buffers(store: Store) -> None:
    """Those of its call alone: it fills them when it goes on. Until it has returned nobody waits for it, and no batch uses it."""
    keys, rows = values(6)
    store.put_from(keys, rows, soon())
    store.client.calls.clear()
    go, returned = threading.Event(), threading.Event()

    def before(call: int) -> None:
        if call == 2:
            go.wait(10)

    store.client.before = before  # type: ignore[method-assign]
    read = buffers(10, 6)
    assert store.get_into(keys, read, soon(0.2)) == [HIT, HIT, TIMEOUT, TIMEOUT, TIMEOUT, TIMEOUT]
    loan = store.lent
    assert loan
    assert loan.positions == range(2, 4)
    loan.then(returned.set)
    store._breaker._probe_at = 0  # it lets one call through
    later = buffers(20, 6)
    with promptly(HANG_S + 0.5):
        assert set(store.get_into(keys, later, soon())) <= {TIMEOUT, FAILED}
        assert store.lent is None
        assert set(store.put_from(keys, rows, soon())) <= {TIMEOUT, FAILED}
        assert store.lent is None
    assert not returned.is_set()
    go.set()
    assert returned.wait(PATIENCE_S)
    wait_until("it is used again", lambda: store.get_into(keys, later, soon()) == [HIT] * 6)
    assert later == rows
    assert read == [*rows[:4], *buffers(30, 2)]
    at_once = threading.Event()
    loan.then(at_once.set)
    assert at_once.is_set()


@pytest.mark.parametrize("entry", ["join", "register"])
def test_a_client_that_hangs_while_it_joins(store: Store, entry: str) -> None:
    """As any other call: the deadline holds, and the client is used once it has joined."""
    keys, rows = values(2)
    store.hangs = entry
    with promptly(0.5):
        assert store.put_from(keys, rows, soon(0.1)) == [TIMEOUT] * 2
    store.go.set()
    wait_until("it joined", lambda: store.put_from(keys, rows, soon()) == [HIT] * 2)
    assert len(store.registered) == 1


@pytest.mark.parametrize("entry", ["leave", "read"])
def test_a_client_that_hangs_at_the_end(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left to end with the process."""
    monkeypatch.setattr(native_module, "_CLOSE_S", 0.1)
    store = Store(MEMORY)
    keys, rows = values(1)
    store.put_from(keys, rows, soon())
    if entry == "read":
        store.client.before = lambda call: store.go.wait(PATIENCE_S)  # type: ignore[method-assign, assignment]
        assert store.get_into(keys, buffers(10, 1), soon(0.1)) == [TIMEOUT]
    store.hangs = entry
    with promptly(0.5):
        store.close()
    store.go.set()


def test_a_write_that_is_given_up_lends_its_buffers(store: Store) -> None:
    """All of its call: it reads them when it goes on."""
    keys, rows = values(3)
    go, returned = threading.Event(), threading.Event()
    store.client.before = lambda call: go.wait(10)  # type: ignore[method-assign,assignment]
    assert store.put_from(keys, rows, soon(0.2)) == [TIMEOUT] * 3
    assert store.lent
    assert store.lent.positions == range(3)
    store.lent.then(lambda: returned.set() if "k2" in store.client.data else None)
    go.set()
    assert returned.wait(PATIENCE_S)
    wait_until("nothing is lent", lambda: store.lent is None)


def closed(store: Store) -> bool:
    """Whether calls go through."""
    return store._breaker.closed


def test_a_call_with_little_time_is_no_fault_of_the_store(store: Store) -> None:
    """It is given up, and goes on. Whoever comes next waits for its end, and finds a store that works."""
    keys, rows = values(2)
    slow = threading.Event()
    store.client.before = lambda call: slow.wait(0.3)  # type: ignore[method-assign,assignment]
    assert store.put_from(keys, rows, soon(0.05)) == [TIMEOUT] * 2
    assert closed(store)
    assert store.put_from(keys, rows, soon(0.01)) == [TIMEOUT] * 2  # not waited for
    assert closed(store)
    assert store.put_from(keys, rows, soon()) == [HIT] * 2


def test_a_call_that_hangs_is_a_fault_of_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time was up long before. It is not waited for any more, and others are spared the wait."""
    monkeypatch.setattr(native_module, "HANG_S", 0.2)
    keys, rows = values(1)
    go = threading.Event()
    store.client.before = lambda call: go.wait(30)  # type: ignore[method-assign,assignment]
    assert store.put_from(keys, rows, soon(0.05)) == [TIMEOUT]
    assert closed(store)
    with promptly(0.4):
        assert store.put_from(keys, rows, soon()) == [TIMEOUT]
    assert not closed(store)
    go.set()
    wait_until("it is used again", lambda: store.put_from(keys, rows, soon()) == [HIT])


def test_a_question_that_is_given_up_lends_nothing(store: Store) -> None:
    """It has no buffers."""
    go = threading.Event()
    outcomes = store._ask(lambda _: [int(go.wait(10))], 1, store._change, soon(0.1))
    assert (outcomes, store.lent) == ([TIMEOUT], None)
    go.set()


def test_a_buffer_elsewhere_is_a_mistake_of_ours(store: Store) -> None:
    """The client could not reach it, and an engine would never know why."""
    for place in (memoryview(bytearray(SIZE)), memoryview(mmap.mmap(-1, SIZE))):
        with pytest.raises(ValueError, match="outside of the memory"):
            store.get_into([b"k"], [place], soon())
    assert store.client.calls == []


def test_a_client_without_memory_is_only_asked() -> None:
    """A mistake of ours is no outcome: it would be a store that silently keeps nothing."""
    store = Store(None)
    for move in (store.get_into, store.put_from):
        with pytest.raises(ValueError, match="made without memory"):
            move([b"k"], buffers(0, 1), soon())
    assert store._ask(lambda native: [0], 1, store._change, soon()) == [HIT]
    assert store.registered == []
    store.close()


def test_memory_that_the_client_refuses(store: Store) -> None:
    """The store fails, and is left, until it does not."""
    keys, rows = values(1)
    store.registers = -600
    assert store.put_from(keys, rows, soon()) == [FAILED]
    assert (store.left, store.client.calls) == (1, [])
    store.registers = 0
    wait_until("the breaker lets a call through", lambda: store.put_from(keys, rows, soon()) == [HIT])
    assert len(store.registered) == 2


@pytest.mark.parametrize(
    ("remote", "row_bytes", "rows", "expected"),
    [
        ({"type": "redis", "host": "h"}, MIB, 1000, 0),
        ({"type": "lmcache", "host": "h", "port": 1}, MIB, 1000, 0),
        ({"type": "mooncake", "master": "m:1"}, MIB, 1000, 16),
        ({"type": "mooncake", "master": "m:1"}, 64 << 20, 1000, 1),
        ({"type": "mooncake", "master": "m:1"}, SIZE, 10_000, MOST_KEYS),
        ({"type": "mooncake", "master": "m:1"}, MIB, 40, 5),
        ({"type": "infinistore", "host": "h", "port": 1, "experimental": True}, MIB, 4, 1),
    ],
)
def test_rows_that_are_set_aside(remote: dict[str, Any], row_bytes: int, rows: int, expected: int) -> None:
    """None for clients of our own; never so many that a small tier suffers, and never none where one can be lent."""
    config: RemoteStore = TypeAdapter[RemoteStore](RemoteStore).validate_python(remote)
    assert most_lent(config, row_bytes, rows) == expected
    assert most_lent(None, row_bytes, rows) == 0
