"""Redis behind sentinels: the contract, fail-overs in mid-use, and configurations that are wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from connector.tests.store.conftest import Connect, NewServer
from connector.tests.store.contract import (
    FAILED,
    HIT,
    MIB,
    MISS,
    STALLED,
    TIMEOUT,
    StoreContract,
    get,
    noise,
    put,
    soon,
)
from kvpool_connector.stores import Breaker, Outcome, Store
from testkit.patience import PATIENCE_S, promptly
from testkit.ports import free_port
from testkit.sentinel import MASTER_NAME, SentinelGroup, followed_s, replaced_s, secret
from testkit.servers import wait_until

PASSWORD, SENTINELS_PASSWORD = "quarterdeck", "crows-nest"


@pytest.fixture(scope="module")
def new_server() -> NewServer:
    """Makes a group that does not run yet."""
    return SentinelGroup


class TestContract(StoreContract):
    """All servers of the group and the sentinels stop and start together."""

    @staticmethod
    def at(host: str) -> dict[str, object]:
        """Of the only sentinel."""
        return {"sentinel": {"master_name": MASTER_NAME, "endpoints": [{"host": host, "port": 1}]}}


class Traffic:
    """Writes and reads in a thread of its own until it is stopped; notes outcomes and wrong bytes."""

    def __init__(self, store: Store) -> None:
        self.seen: list[tuple[float, Outcome, Outcome]] = []
        self.wrong: list[str] = []
        self._store, self._stop = store, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                number += 1
                key, value = b"t%d" % (number % 50), noise(number % 50, 200_000)
                (written,) = self._store.put_from([key], [memoryview(value)], soon(1))
                buffer = bytearray(200_000)
                (read,) = self._store.get_into([key], [memoryview(buffer)], soon(1))
                if read is HIT and bytes(buffer) != value:
                    self.wrong.append(key.decode())
                self.seen.append((time.monotonic(), written, read))
        except BaseException as error:
            self.wrong.append(repr(error))

    def good_since(self, moment: float) -> bool:
        """Something was written and read after this moment."""
        return any(at > moment and (written, read) == (HIT, HIT) for at, written, read in tuple(self.seen))

    def end(self) -> set[Outcome]:
        """Every outcome that was seen."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return {outcome for _, written, read in self.seen for outcome in (written, read)}


def test_a_primary_that_is_lost_in_mid_traffic(connect: Connect) -> None:
    """Only outcomes, no wrong byte; the next primary is used as soon as the sentinels name it, and the lost one comes back as
    a replica that nobody writes to."""
    with SentinelGroup() as group:
        store = connect(group, breaker=Breaker())
        traffic = Traffic(store)
        wait_until("traffic", lambda: len(traffic.seen) > 50)
        before = group.primary
        group.kill_primary()
        wait_until("the sentinels name another", lambda: group.primary is not before, replaced_s())
        named = time.monotonic()
        wait_until("it is used", lambda: traffic.good_since(named))
        before.start()
        with redis.Redis(port=before.port) as client:
            wait_until("the lost one follows", lambda: client.execute_command("ROLE")[0] == b"slave", followed_s())
        returned = time.monotonic()
        wait_until("traffic goes on", lambda: traffic.good_since(returned))
        outcomes = traffic.end()
        assert not traffic.wrong
        assert {HIT, FAILED} <= outcomes <= {HIT, MISS, FAILED, TIMEOUT, STALLED}
        assert store.generation >= 2


def test_a_primary_that_is_demoted_under_an_open_connection(connect: Connect) -> None:
    """READONLY: the sentinels are asked anew. They cut connections on a fail-over, so the demotion here is by hand."""
    with SentinelGroup() as group:
        store = connect(group)
        assert put(store, {b"a": b"1"}) == [HIT]
        first, second = group.primary, group.servers[1]
        for sentinel in group.sentinels:  # they would undo it
            sentinel.pause()
        with redis.Redis(port=first.port) as client, redis.Redis(port=second.port) as other:
            client.execute_command("REPLICAOF", second.host, second.port)
            assert put(store, {b"a": b"1"}) == [FAILED]
            assert store.put_from([b"a"], [memoryview(b"1")], soon(0.5)) in ([FAILED], [TIMEOUT])
            assert store.generation == 1
            other.execute_command("REPLICAOF", "NO", "ONE")
            client.execute_command("REPLICAOF", "NO", "ONE")
        for sentinel in group.sentinels:
            sentinel.resume()
        wait_until("it is written again", lambda: put(store, {b"a": b"1"}) == [HIT])
        assert store.generation == 2


# ---- groups that change nothing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[SentinelGroup]:
    """Servers and sentinels want passwords, each its own."""
    with SentinelGroup(password=PASSWORD, sentinel_password=SENTINELS_PASSWORD) as group:
        yield group


def with_sentinel(group: SentinelGroup, **fields: Any) -> dict[str, Any]:
    """The group's own section with some fields changed."""
    section = group.remote()["sentinel"]
    assert isinstance(section, dict)
    return {"sentinel": section | fields}


def test_credentials(
    guarded: SentinelGroup, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sentinels' and the servers' are told apart; the reason names who refused; no password in any log."""
    servers, sentinels = secret(tmp_path, "a", PASSWORD), secret(tmp_path, "b", SENTINELS_PASSWORD)
    right = with_sentinel(guarded, password_file=sentinels)
    assert connect(guarded, **right, password_file=servers).ping(soon()) is HIT
    for fields, reason in (
        (with_sentinel(guarded, password_file=servers) | {"password_file": servers}, "AUTH refused: WRONGPASS"),
        (with_sentinel(guarded) | {"password_file": servers}, "PING refused: NOAUTH"),
        (right | {"password_file": sentinels}, "AUTH refused: WRONGPASS"),
        (right, "PING refused: NOAUTH"),
    ):
        caplog.clear()
        assert connect(guarded, **fields).ping(soon()) is FAILED
        assert reason in caplog.text
        assert PASSWORD not in caplog.text
        assert SENTINELS_PASSWORD not in caplog.text


def test_an_unknown_master(server: SentinelGroup, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """A reason that names the field."""
    assert connect(server, **with_sentinel(server, master_name="somebody")).ping(soon()) is FAILED
    assert "knows no master 'somebody'" in caplog.text
    assert "remote.sentinel.master_name" in caplog.text


def test_sentinels_that_do_not_answer(server: SentinelGroup, connect: Connect) -> None:
    """One that is not there and one that hangs leave time for the third."""
    section = server.remote()["sentinel"]
    assert isinstance(section, dict)
    absent = {"host": "127.0.0.1", "port": free_port()}
    hanging, good = section["endpoints"][:2]
    server.sentinels[0].pause()
    try:
        store = connect(
            server,
            **with_sentinel(server, endpoints=[absent, hanging, good]),
            timeouts={"connect_ms": 1000},
        )
        with promptly(1.0):
            assert store.ping(soon()) is HIT
        store.close()
        with promptly(0.2):
            assert store.ping(soon()) is HIT  # the one that answered is asked first now
    finally:
        server.sentinels[0].resume()


def test_something_else_in_place_of_a_sentinel(
    server: SentinelGroup, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain Redis knows no SENTINEL command."""
    plain = [{"host": "127.0.0.1", "port": server.servers[0].port}]
    assert connect(server, **with_sentinel(server, endpoints=plain)).ping(soon()) is FAILED
    assert "SENTINEL refused: ERR unknown command" in caplog.text


def test_values_of_a_mebibyte(server: SentinelGroup, connect: Connect) -> None:
    """And a database of their own: SELECT comes after the role."""
    store = connect(server, database=2)
    assert put(store, {b"m": noise(1, MIB)}) == [HIT]
    assert get(store, [b"m"], [MIB]) == ([HIT], [noise(1, MIB)])
    assert connect(server).exists([b"m"], soon()) == [MISS]
