"""Servers that fall silent, and slow ones that do not: what a load waits for, and what it gives up.

The contract has the silence of whole servers, for every store whose calls can be watched.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from connector.tests.store.conftest import Connect, buffers
from connector.tests.store.contract import FAILED, HIT, MIB, STALLED, TIMEOUT, get, noise, put, soon
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.stores import Breaker
from testkit.lmcache import LMCacheServer
from testkit.servers import KeyValueServer, wait_until
from testkit.slow_link import SlowLink

GREETING = b"+PONG\r\n"
QUICK = {"stall_ms": 250, "connect_ms": 30_000}
UNHURRIED = {"stall_ms": 30_000, "connect_ms": 30_000}
"""For what is not about silence: on a busy machine a server that is well may need 250 ms for a byte."""
LONG_S = 30.0
"""A deadline that no test shall reach."""
SOON_S = 5.0
"""Much less, and much more than any silence here may last."""


@contextmanager
def silent(*answers: bytes) -> Iterator[int]:
    """A server that gives each answer to one request, and then is silent on an open connection."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONG_S)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(LONG_S)
                for answer in answers:
                    connection.recv(65536)
                    connection.sendall(answer)
                ended.wait(LONG_S)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        thread.join(10)


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose kernel drops every SYN, as the address of a Pod that is gone does."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]

        def accepted() -> bool:
            try:
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.1))
            except TimeoutError:
                return False
            return True

        wait_until("the backlog is full", lambda: not accepted())
        yield port


# ---- silence -------------------------------------------------------------------------------------


def test_nobody_answers_the_first_packet(connect: Connect) -> None:
    """A load waits for a connection no longer than for a byte, whatever ``connect_ms`` says."""
    with full_backlog() as port:
        store = connect(port, breaker=(breaker := Breaker(first_s=60)), timeouts=QUICK)
        begin = time.monotonic()
        assert store.get_into([b"key"], [memoryview(bytearray(4))], soon(LONG_S)) == [STALLED]
        assert time.monotonic() - begin < SOON_S
        assert not breaker.closed


def test_a_connection_that_is_never_greeted(connect: Connect) -> None:
    """The kernel of a server that hangs still accepts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = connect(listener.getsockname()[1], timeouts=QUICK)
        begin = time.monotonic()
        assert store.get_into([b"key"], [memoryview(bytearray(4))], soon(LONG_S)) == [STALLED]
        assert time.monotonic() - begin < SOON_S


def test_silence_after_half_a_value(connect: Connect) -> None:
    """Counted from the last byte: what came before is no reason to wait twice."""
    with silent(GREETING, b"$1000000\r\n" + bytes(500_000)) as port:
        store = connect(port, breaker=(breaker := Breaker(first_s=60)), timeouts={"stall_ms": 1000})
        begin = time.monotonic()
        row = memoryview(bytearray(1_000_000))
        assert store.get_into([b"key"], [row], soon(LONG_S)) == [STALLED]
        assert 0.99 < time.monotonic() - begin < 1.7
        assert not breaker.closed


def test_what_came_before_the_silence_is_used(connect: Connect) -> None:
    """The rest is given up."""
    with silent(GREETING, b"$4\r\nabcd\r\n$4\r\nef") as port:
        store, rows = connect(port, timeouts=QUICK), [memoryview(bytearray(4)) for _ in range(3)]
        assert store.get_into([b"a", b"b", b"c"], rows, soon(LONG_S)) == [HIT, STALLED, STALLED]
        assert bytes(rows[0]) == b"abcd"


def test_a_question_is_answered_by_silence(connect: Connect) -> None:
    """The presence thread tells whoever waits as soon as it is sure: a miss, and so is all that
    comes after."""
    with KeyValueServer() as server:
        presence = Presence(
            connect(server, timeouts=QUICK),
            names=lambda key: [key],
            timeout_s=lambda _: LONG_S,
            patience_s=LONG_S,
        )
        wait_until("it is reached", lambda: presence.reachable)
        server.pause()
        begin = time.monotonic()
        assert presence.ask(b"key", "r") is None
        presence.flush()
        wait_until("there is an answer", presence.take_answers)
        assert [presence.ask(key, "r") for key in (b"key", b"other")] == [False, False]
        assert time.monotonic() - begin < SOON_S
        server.resume()
        wait_until("it is reached again", lambda: presence.reachable)
        presence.close()


# ---- whose fault ---------------------------------------------------------------------------------


def test_a_deadline_in_mid_traffic_is_no_fault_of_the_servers(connect: Connect) -> None:
    """What came until then is used. The breaker stays closed: others may have more time."""
    with KeyValueServer() as server, SlowLink(server.host, server.port, 5e6) as link:
        values = {b"k%d" % number: noise(number, 256 << 10) for number in range(64)}
        put(connect(server), values)
        store = connect(link.port, breaker=(breaker := Breaker(first_s=60)), timeouts=UNHURRIED)
        assert store.ping(soon()) is HIT
        outcomes = store.get_into(list(values), buffers([256 << 10] * 64), soon(1))
        assert outcomes[0] is HIT
        assert outcomes[-1] is TIMEOUT
        assert set(outcomes) == {HIT, TIMEOUT}
        assert breaker.closed
        link.set_rate(1e9)
        assert get(store, list(values), [256 << 10] * 64) == ([HIT] * 64, list(values.values()))


def test_a_deadline_in_mid_traffic_closes_an_open_breaker(connect: Connect) -> None:
    """The one call that is let through was answered, though not in full."""
    with KeyValueServer() as server, SlowLink(server.host, server.port, 5e6) as link:
        values = {b"k%d" % number: noise(number, 256 << 10) for number in range(64)}
        put(connect(server), values)
        breaker = Breaker(first_s=0)
        store = connect(link.port, breaker=breaker, timeouts=UNHURRIED)
        assert store.ping(soon()) is HIT
        breaker.failed()
        assert TIMEOUT in store.get_into(list(values), buffers([256 << 10] * 64), soon(1))
        assert breaker.closed


def test_silence_in_short_calls_adds_up(connect: Connect) -> None:
    """Each alone is too short to know. Loads that may take little would else pay for a dead store
    one after the other."""
    with KeyValueServer() as server:
        store = connect(server, breaker=(breaker := Breaker(first_s=60)), timeouts=QUICK)
        assert store.ping(soon()) is HIT
        server.pause()
        for closed in (True, True, False):
            assert store.get_into([b"a"], buffers([MIB]), soon(0.1)) == [TIMEOUT]
            assert breaker.closed is closed
        assert store.get_into([b"a"], buffers([MIB]), soon(0.1)) == [FAILED]
        server.resume()


def test_silence_in_short_calls_is_forgotten_with_an_answer(connect: Connect) -> None:
    """A busy server may be late now and then."""
    with KeyValueServer() as server:
        store = connect(server, breaker=(breaker := Breaker(first_s=60)), timeouts=QUICK)
        for _ in range(4):
            assert store.ping(soon()) is HIT
            server.pause()
            assert store.exists([b"a"], soon(0.1)) == [TIMEOUT]
            server.resume()
        assert breaker.closed


# ---- slow and steady -----------------------------------------------------------------------------


@pytest.mark.parametrize("new_server", [KeyValueServer, LMCacheServer])
@pytest.mark.parametrize("rate", [1e6, 10e6])
def test_a_slow_steady_server_is_waited_for(
    new_server: Callable[[], KeyValueServer | LMCacheServer], rate: float, connect: Connect
) -> None:
    """Reading and writing. A write's window lies in queues on the way for longer than a server may
    be silent."""
    with new_server() as server, SlowLink(server.host, server.port, rate) as link:
        here = connect(server)
        breaker = Breaker(first_s=60)
        there = connect(server, port=link.port, breaker=breaker, timeouts=QUICK)
        values = {b"k%d" % number: noise(number, MIB) for number in range(2 if rate < 5e6 else 6)}
        parts = [memoryview(value) for value in values.values()]
        assert there.put_from(list(values), parts, soon(LONG_S)) == [HIT] * len(values)
        assert get(here, list(values), [MIB] * len(values))[1] == list(values.values())
        rows = buffers([MIB] * len(values))
        assert there.get_into(list(values), rows, soon(LONG_S)) == [HIT] * len(values)
        assert list(map(bytes, rows)) == list(values.values())
        assert breaker.closed
