"""``lmcache_server``: the contract, and what is its alone."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from connector.tests.store.conftest import Connect, NewServer
from connector.tests.store.contract import (
    CORRUPT,
    FAILED,
    HIT,
    MIB,
    MISS,
    TIMEOUT,
    StoreContract,
    get,
    noise,
    put,
    soon,
)
from kvpool_connector.stores import Breaker
from kvpool_connector.stores.lmcache import LMCacheStore, wire_key
from testkit.lmcache import LMCacheServer
from testkit.patience import PATIENCE_S, promptly

HEALTHY = struct.pack("<9i", 200, 0, 1, 2, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def new_server() -> NewServer:
    """Makes a server that does not run yet."""
    return LMCacheServer


class TestContract(StoreContract):
    """The protocol has no command to delete, and the server is never full."""

    deletes = False


def test_names_and_keys() -> None:
    """Any name becomes a key of the form that the server parses, of at most 150 bytes; docs/format.md says how."""
    names = [b"", b"\x00", b"0", b"00", b"@", b"kvpool:1:" + b"f" * 300]
    keys = [wire_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 150 and key.decode().split("@")[:3] == ["kvpool", "1", "0"] for key in keys)
    assert wire_key(b"example") == (
        b"kvpool@1@0@4e8577b1814c82177b00dd5314a75693fc34d078d47a9565a8a2fbf5c9071bfb@uint8"
    )


def test_a_part_that_was_cut_off_is_replaced_by_the_next_write(server: LMCacheServer, connect: Connect) -> None:
    """The server keeps a key without a value and drops whoever asks for it. Others are read all the same, the breaker stays
    closed, and after a delete the next write mends the key."""
    head = struct.pack("<9i150s", 1, 1000, 4, 6, 0, 1000, 0, 0, 0, wire_key(b"cut").ljust(150))
    with socket.create_connection((server.host, server.port)) as broken:
        broken.sendall(head + b"x" * 10)
        broken.shutdown(socket.SHUT_WR)
        assert broken.recv(1) == b""  # it noticed
    store = connect(server, breaker=(breaker := Breaker(first_s=60)))
    values = {b"before": noise(1, 100_000), b"after": noise(2, 100_000)}
    put(store, values)
    keys, sizes = [b"before", b"cut", b"after", b"cut"], [100_000, 1000, 100_000, 999]
    for _ in range(3):
        outcomes, read = get(store, keys, sizes)
        assert outcomes == [HIT, CORRUPT, HIT, CORRUPT]
        assert [read[0], read[2]] == list(values.values())
    assert breaker.closed
    assert store.exists([b"cut"], soon()) == [HIT]
    assert store.delete([b"cut"], soon()) == [FAILED]
    assert store.exists([b"cut"], soon()) == [MISS]
    assert put(store, {b"cut": b"whole"}) == [HIT]
    assert store.exists([b"cut"], soon()) == [HIT]
    assert get(connect(server), [b"cut"], [5]) == ([HIT], [b"whole"])


def test_a_value_too_long_for_the_protocol(
    server: LMCacheServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILED, not sent; its neighbours are stored. The limit is lowered, since 2 GiB are too much here."""
    monkeypatch.setattr("kvpool_connector.stores.lmcache._LARGEST", 100)
    store = connect(server)
    assert put(store, {b"short": b"1", b"long": b"1" * 101, b"last": b"2"}) == [HIT, FAILED, HIT]
    assert store.exists([b"short", b"long", b"last"], soon()) == [HIT, MISS, HIT]


def test_many_questions_are_not_slowed_by_delayed_acknowledgements(server: LMCacheServer, connect: Connect) -> None:
    """The server's socket holds small replies back until the last one is acknowledged; 40 ms each would be 4 s."""
    store = connect(server)
    put(store, {b"n%d" % number: b"1" for number in range(100)})
    with promptly(0.5):
        for _ in range(10):
            assert store.exists([b"n%d" % number for number in range(10)], soon()) == [HIT] * 10
            assert get(store, [b"n1", b"n2"], [1, 1]) == ([HIT] * 2, [b"1"] * 2)


# ---- servers that are none -----------------------------------------------------------------------------------------


@contextmanager
def liar(*answers: bytes) -> Iterator[int]:
    """A server that gives an answer to each request and then closes the connection."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(2)
                    try:
                        for answer in answers:
                            if not connection.recv(65536):
                                break
                            connection.sendall(answer)
                        ended.wait(0.4 if answers[-1:] == (b"",) else 0)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        thread.join(PATIENCE_S)


def reply(code: int, length: int) -> bytes:
    """A reply's header."""
    return struct.pack("<9i", code, length, 4, 6, length, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((), FAILED),  # drops everybody
        ((HEALTHY,), FAILED),
        ((b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",), FAILED),
        ((HEALTHY, reply(200, 4)[:20]), FAILED),
        ((HEALTHY, reply(200, 4)), CORRUPT),  # has it, cannot send it
        ((HEALTHY, reply(200, 4) + b"ab"), FAILED),
        ((HEALTHY, reply(200, 4) + b"ab", b""), TIMEOUT),
        ((HEALTHY, b""), TIMEOUT),
        ((HEALTHY, reply(200, -1)), FAILED),
        ((HEALTHY, reply(201, 4) + b"abcd"), FAILED),
        ((HEALTHY, reply(400, 4) + b"abcd"), FAILED),
        ((HEALTHY, reply(200, 3) + b"abc"), CORRUPT),
        ((HEALTHY, reply(400, 0)), MISS),
    ],
)
def test_a_server_that_speaks_nonsense(answers: tuple[bytes, ...], expected: object, connect: Connect) -> None:
    """Never a hit, never an exception, never later than the deadline."""
    with liar(*answers) as port:
        store = connect(LMCacheServer(port))
        with promptly(0.55):  # the deadline is near only where it is what ends the call: the stand-in may be late
            deadline = soon(0.25) if expected is TIMEOUT else soon()
            (outcome,) = store.get_into([b"key"], [memoryview(bytearray(4))], deadline)
        assert outcome is expected


@pytest.mark.parametrize("answer", [reply(400, 0), reply(200, 1), noise(1, 36), b"", HEALTHY[:35]])
def test_a_barrier_that_is_none(answer: bytes, connect: Connect) -> None:
    """Nothing is known about the values in front of it."""
    with liar(HEALTHY, answer) as port:
        store = connect(LMCacheServer(port))
        assert set(store.put_from([b"a", b"b"], [memoryview(b"1")] * 2, soon(0.25))) <= {FAILED, TIMEOUT}
        assert isinstance(store, LMCacheStore)
        assert store._connection is None


def test_a_large_batch(server: LMCacheServer, connect: Connect) -> None:
    """More buffers than one call of the operating system takes."""
    store = connect(server)
    values = {b"b%d" % number: noise(number, 4 + number % 7) for number in range(2000)} | {b"big": noise(1, 3 * MIB)}
    assert put(store, values) == [HIT] * len(values)
    assert get(store, list(values), [len(v) for v in values.values()])[1] == list(values.values())
