"""Redis and Valkey: the contract, and what is theirs alone."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from connector.tests.store.conftest import Connect
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
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.redis import RedisStore
from testkit.patience import PATIENCE_S, promptly
from testkit.servers import KeyValueServer, ServerKind, wait_until

PASSWORD = "quarterdeck"


class TestContract(StoreContract):
    """For both kinds of server."""


def control(server: KeyValueServer, password: str | None = None) -> redis.Redis:
    """A client that is not ours."""
    return redis.Redis(host=server.host, port=server.port, password=password)


# ---- the server's own features ---------------------------------------------------------------------------------


def test_a_full_server_refuses_and_goes_on(kind: ServerKind, connect: Connect) -> None:
    """FAILED per key; reads on the same connection are whole, and the breaker stays closed."""
    with KeyValueServer(kind, maxmemory="8mb") as server:
        breaker = Breaker()
        store = connect(server, breaker=breaker)
        values = {b"k%d" % number: noise(number, MIB) for number in range(16)}
        outcomes = put(store, values)
        assert set(outcomes) == {HIT, FAILED}
        assert outcomes[0] is HIT
        stored = [key for key, outcome in zip(values, outcomes, strict=True) if outcome is HIT]
        assert get(store, stored, [MIB] * len(stored)) == ([HIT] * len(stored), [values[key] for key in stored])
        assert store.exists(list(values), soon()) == [HIT if key in stored else MISS for key in values]
        assert store.generation == 1
        assert breaker.closed


def test_an_evicting_server(kind: ServerKind, connect: Connect) -> None:
    """Every put succeeds, what was evicted is a miss, the rest is whole."""
    with KeyValueServer(kind, maxmemory="8mb", policy="allkeys-lru") as server:
        store = connect(server)
        values = {b"k%d" % number: noise(number, MIB) for number in range(16)}
        assert put(store, values) == [HIT] * 16
        outcomes, read = get(store, list(values), [MIB] * 16)
        assert {outcome.value for outcome in outcomes} == {"hit", "miss"}
        assert all(value == values[key] for key, o, value in zip(values, outcomes, read, strict=True) if o is HIT)


def test_a_key_of_another_type(server: KeyValueServer, connect: Connect) -> None:
    """Someone else's list under our name: FAILED, and what follows is read."""
    with control(server) as other:
        other.rpush("list", "x")
    store = connect(server)
    put(store, {b"after": b"1234"})
    assert get(store, [b"list", b"after"], [4, 4]) == ([FAILED, HIT], [b"\xee" * 4, b"1234"])
    assert store.generation == 1


def test_expiry(server: KeyValueServer, connect: Connect) -> None:
    """Set with the value, or not at all."""
    assert put(connect(server, ttl_s=100), {b"short": b"1", b"shorter": b""}) == [HIT] * 2
    assert put(connect(server), {b"long": b"1"}) == [HIT]
    with control(server) as other:
        assert [90 < other.ttl(key) <= 100 for key in ("short", "shorter")] == [True] * 2
        assert other.ttl("long") == -1


def test_databases_are_separate(server: KeyValueServer, connect: Connect) -> None:
    """SELECT on each connection."""
    store = connect(server, database=3)
    put(store, {b"three": b"1"})
    store.close()
    assert store.exists([b"three"], soon()) == [HIT]
    assert connect(server).exists([b"three"], soon()) == [MISS]
    assert connect(server, database=99).exists([b"three"], soon()) == [FAILED]


# ---- authentication ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(kind: ServerKind) -> Iterator[KeyValueServer]:
    """Asks for a password."""
    with KeyValueServer(kind, password=PASSWORD) as server:
        yield server


def test_passwords(
    guarded: KeyValueServer, server: KeyValueServer, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Right, wrong, none, needless and unreadable: an outcome each time, and no password in any log."""
    caplog.set_level(logging.DEBUG)
    right, wrong, empty = tmp_path / "right", tmp_path / "wrong", tmp_path / "empty"
    right.write_text(f"{PASSWORD}\n")
    wrong.write_text("forecastle")
    empty.write_text("")
    assert connect(guarded, password_file=str(right)).ping(soon()) is HIT
    for fields, reason in (
        ({"password_file": str(wrong)}, "AUTH refused: WRONGPASS"),
        ({}, "PING refused: NOAUTH"),
        ({"password_file": str(empty)}, "AUTH refused: WRONGPASS"),
        ({"password_file": str(tmp_path / "missing")}, "No such file"),
        ({"password_file": str(right), "username": "nobody"}, "AUTH refused: WRONGPASS"),
    ):
        caplog.clear()
        assert connect(guarded, **fields).exists([b"a"], soon()) == [FAILED]
        assert reason in caplog.text
        assert f"{guarded.host}:{guarded.port}" in caplog.text
    assert connect(server, password_file=str(wrong)).ping(soon()) is FAILED  # the server has none
    text = "".join(record.getMessage() for record in caplog.get_records("call")) + caplog.text
    assert PASSWORD not in text
    assert "forecastle" not in text


def test_a_server_that_knows_the_former_password_alone(kind: ServerKind, connect: Connect, tmp_path: Path) -> None:
    """A changed Secret comes to the engine's node before it comes to the server's."""
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    with KeyValueServer(kind, password=PASSWORD) as server:
        assert connect(server, password_file=str(secret)).ping(soon()) is HIT
        secret.write_text("the next one")
        assert connect(server, password_file=str(secret)).ping(soon()) is HIT
        with control(server, PASSWORD) as admin:
            admin.config_set("requirepass", "the next one")
        assert connect(server, password_file=str(secret)).ping(soon()) is HIT
        secret.write_text("a wrong one")
        with control(server, "the next one") as admin:
            admin.config_set("requirepass", "a third one")
        assert connect(server, password_file=str(secret)).ping(soon()) is FAILED


def test_a_password_on_a_file_system_that_hangs(server: KeyValueServer, connect: Connect, tmp_path: Path) -> None:
    """Nobody ever writes to the pipe. A read is given up at its deadline, as one from a server that is silent."""
    pipe = tmp_path / "password"
    os.mkfifo(pipe)
    store = connect(server, password_file=str(pipe))
    began = time.monotonic()
    assert store.ping(soon(0.3)) is Outcome.STALLED
    assert time.monotonic() - began < 5
    with pipe.open("wb"):
        pass  # the thread's read ends


def test_a_rotated_password_is_read_again(kind: ServerKind, connect: Connect, tmp_path: Path) -> None:
    """At the next connection, without a restart of the engine."""
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    with KeyValueServer(kind, password=PASSWORD) as server:
        store = connect(server, password_file=str(secret))
        assert store.ping(soon()) is HIT
        with control(server, PASSWORD) as other:
            other.config_set("requirepass", "topgallant")
            other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert store.ping(soon()) is FAILED
        secret.write_text("topgallant\n")
        wait_until("the new password is used", lambda: store.ping(soon()) is HIT)


def test_a_user_with_few_rights(server: KeyValueServer, connect: Connect, tmp_path: Path) -> None:
    """What it may not do is FAILED per key; the rest works on the same connection."""
    secret = tmp_path / "password"
    secret.write_text("mizzen")
    with control(server) as other:
        other.acl_setuser(
            "kv", enabled=True, reset=True, passwords=["+mizzen"], keys=["kvpool:*"],
            commands=["+get", "+set", "+exists", "+ping"],
        )  # fmt: skip
    store = connect(server, username="kv", password_file=str(secret))
    assert put(store, {b"kvpool:1": b"1", b"other": b"1", b"kvpool:2": b"2"}) == [HIT, FAILED, HIT]
    assert store.delete([b"kvpool:1"], soon()) == [FAILED]
    assert get(store, [b"kvpool:1", b"other", b"kvpool:2"], [1, 1, 1])[0] == [HIT, FAILED, HIT]
    assert store.generation == 1


# ---- servers that are none -----------------------------------------------------------------------------------------

GREETING = b"+PONG\r\n"


@contextmanager
def liar(reply: bytes, *, after: bytes = GREETING, hold: bool = True) -> Iterator[int]:
    """A server that answers the handshake with ``after`` and the first command with ``reply``, then holds or closes."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        open_ones: list[socket.socket] = []

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                open_ones.append(connection)
                connection.settimeout(2)
                try:
                    for answer in (after, reply):
                        if not connection.recv(65536):
                            break
                        connection.sendall(answer)
                    if not hold:
                        connection.close()
                except OSError:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        thread.join(PATIENCE_S)
        for connection in open_ones:
            connection.close()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"$4\r\nab", TIMEOUT),  # half a value
        (b"$4\r\nabcd", TIMEOUT),  # no end
        (b"$4\r\nabcdXX", FAILED),  # another end
        (b"$4", TIMEOUT),
        (b"$4\n", TIMEOUT),
        (b"$9999999999999999999999\r\nabcd\r\n", TIMEOUT),
        (b"$" + b"9" * 5000 + b"\r\n", FAILED),
        (b"$-2\r\n", FAILED),
        (b"$ 4\r\nabcd\r\n", FAILED),
        (b"$+4\r\nabcd\r\n", FAILED),
        (b"$\r\n\r\n", FAILED),
        (b"\r\n", FAILED),
        (b"+OK\r\n", FAILED),
        (b":1\r\n", FAILED),
        (b"*1\r\n$4\r\nabcd\r\n", FAILED),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", FAILED),
        (b"-ERR no\r\n", FAILED),
        (noise(9, 20_000).replace(b"\r\n", b""), FAILED),
        (b"x" * 10_000, FAILED),
        (b"$3\r\nabc\r\n", CORRUPT),
        (b"", TIMEOUT),
    ],
)
def test_a_server_that_speaks_nonsense(reply: bytes, expected: object, connect: Connect) -> None:
    """Never a hit, never an exception, never later than the deadline; the next answers on such a stream are not trusted."""
    with liar(reply) as port:
        store = connect(port)
        with promptly(0.55):  # the deadline is near only where it is what ends the call: the stand-in may be late
            deadline = soon(0.25) if expected is TIMEOUT else soon()
            (outcome,) = store.get_into([b"key"], [memoryview(bytearray(4))], deadline)
        assert outcome is expected


@pytest.mark.parametrize(
    "reply", [b"$-1\r\n", b"+QUEUED\r\n", b":2\r\n", b":-1\r\n", b"+OK\r\n+OK", b"$2\r\nOK\r\n", b"OK\r\n"]
)
@pytest.mark.parametrize("verb", ["put", "exists", "delete", "ping"])
def test_a_reply_to_another_command(reply: bytes, verb: str, connect: Connect) -> None:
    """The stream is off by one: FAILED, and the connection is not used again."""
    with liar(reply) as port:
        store = connect(port, breaker=(breaker := Breaker(first_s=60)))
        match verb:
            case "put":
                (outcome,) = put(store, {b"key": b"1"})
                if reply.startswith(b"+OK\r\n"):
                    assert outcome is HIT  # this reply is right; what comes behind it is the next command's fault
                    return
            case "exists":
                (outcome,) = store.exists([b"key"], soon(1))
            case "delete":
                (outcome,) = store.delete([b"key"], soon(1))
            case _:
                outcome = store.ping(soon(1))
        assert outcome is FAILED
        assert isinstance(store, RedisStore)
        assert store._connection is None
        assert not breaker.closed


@pytest.mark.parametrize("greeting", [b"-ERR unknown\r\n", b"$4\r\nPONG\r\n", b"HTTP/1.1 200\r\n", b"\x00" * 9000])
def test_a_greeting_that_is_none(greeting: bytes, connect: Connect) -> None:
    """Nothing is sent to such a server, and nothing is believed."""
    with liar(b":1\r\n", after=greeting) as port:
        store = connect(port)
        assert store.exists([b"key"], soon(1)) == [FAILED]
        assert store.generation == 0


def test_a_refusal_that_repeats_the_password(
    connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Redis does when AUTH was renamed: the text is cut."""
    caplog.set_level(logging.DEBUG)
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    echo = f"-ERR unknown command 'AUTH', with args beginning with: '{PASSWORD}' \r\n".encode()
    with liar(b"", after=echo) as port:
        assert connect(port, password_file=str(secret)).ping(soon(1)) is FAILED
    assert "AUTH refused: ERR" in caplog.text
    assert PASSWORD[:4] not in caplog.text


def test_a_server_that_drips(connect: Connect) -> None:
    """A byte now and then, each in time: the deadline is for the batch, not for a byte."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(GREETING)
                connection.recv(1000)
                connection.sendall(b"$1000\r\n")
                while not ended.wait(0.02):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        begin = time.monotonic()
        breaker = Breaker()
        store = connect(listener.getsockname()[1], breaker=breaker, timeouts={"stall_ms": 500})
        with promptly(0.9):
            assert store.get_into([b"key"], [memoryview(bytearray(1000))], soon(0.6)) == [TIMEOUT]
        assert time.monotonic() - begin > 0.55
        assert breaker.closed
        ended.set()
        thread.join(PATIENCE_S)


def test_buffers_are_left_alone_after_a_time_out(own_server: KeyValueServer, connect: Connect) -> None:
    """The row may belong to somebody else by then."""
    store = connect(own_server)
    put(store, {b"a": noise(1, MIB)})
    buffer = bytearray(MIB)
    own_server.pause()
    assert store.get_into([b"a"], [memoryview(buffer)], soon(0.1)) == [TIMEOUT]
    before = bytes(buffer)
    own_server.resume()
    wait_until("it answers again", lambda: store.ping(soon()) is HIT)
    assert bytes(buffer) == before
