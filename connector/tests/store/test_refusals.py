"""Servers that answer PING and refuse the rest.

Each refusal is told once and counted by its name, and a new connection is made where that helps."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from connector.tests.store.conftest import Connect
from connector.tests.store.contract import FAILED, HIT, MIB, MISS, get, noise, put, soon
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.stores import Breaker, Store
from testkit.patience import PATIENCE_S
from testkit.ports import free_port
from testkit.servers import KeyValueServer, ServerKind, wait_until

VALUE = {b"kvpool:1": b"value"}


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def control(server: KeyValueServer) -> redis.Redis:
    """A client that is not ours."""
    return redis.Redis(host=server.host, port=server.port)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Refusals in the log."""
    return [record.getMessage() for record in caplog.records if " refuses: " in record.getMessage()]


class Name:
    """A port that leads to one server and later to another, as the name of a fail-over group does. A connection
    stays where it was made."""

    def __init__(self, to: KeyValueServer) -> None:
        self.to, self.connections = to, 0
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            server = socket.create_connection((self.to.host, self.to.port))
            for source, sink in ((client, server), (server, client)):
                source.settimeout(0.05)
                self._threads.append(threading.Thread(target=self._pump, args=(source, sink)))
                self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while not self._ended.is_set():
                try:
                    data = source.recv(65536)
                except TimeoutError:
                    continue
                if not data:
                    break
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()

    def close(self) -> None:
        """End all its connections."""
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._listener.close()


@contextmanager
def name(to: KeyValueServer) -> Iterator[Name]:
    """Closed at the end."""
    made = Name(to)
    try:
        yield made
    finally:
        made.close()


# ---- another server is the one to talk to ------------------------------------------------------------------------------


def test_a_fail_over_behind_one_name(kind: ServerKind, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """The old primary is a replica now, and keeps its connections. All of the process are made anew: the one that wrote, and the
    one that reads."""
    with KeyValueServer(kind) as first, KeyValueServer(kind) as second, name(first) as address:
        breaker = Breaker()
        writer, reader = connect(address.port, breaker=breaker), connect(address.port, breaker=breaker)
        assert put(writer, VALUE) == [HIT]
        assert get(reader, list(VALUE), [5])[0] == [HIT]
        with control(first) as client:
            client.execute_command("REPLICAOF", second.host, second.port)
            address.to = second
            assert put(writer, {b"kvpool:2": b"value"}) == [FAILED]
            assert put(writer, {b"kvpool:2": b"value"}) == [HIT]
            assert get(reader, [b"kvpool:2"], [5])[0] == [HIT]
            assert (writer.generation, reader.generation, address.connections) == (2, 2, 4)
        assert breaker.closed
        assert writer.errors == {"store refused READONLY": 1}
        (line,) = told(caplog)
        assert "READONLY You can't write against a read only replica" in line
        assert "blocks are read and not written" in line


def test_a_replica_that_stays_one(kind: ServerKind, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """Reads go on; connections are made at growing intervals, and the log is not filled."""
    with KeyValueServer(kind) as first, KeyValueServer(kind) as second:
        with control(first) as client, control(second) as primary:
            primary.set("kvpool:1", "value")
            client.execute_command("REPLICAOF", second.host, second.port)
            wait_until("it follows", lambda: client.get("kvpool:1") == b"value")
        store, second_of_the_process = connect(first), connect(first)
        assert put(second_of_the_process, VALUE) == [FAILED]
        for _ in range(50):
            assert put(store, VALUE) == [FAILED]
            assert get(store, [b"kvpool:1"], [5]) == ([HIT], [b"value"])
        assert store.errors == {"store refused READONLY": 50}
        assert store.generation <= 1 + 6  # 1, 2, 4, ... seconds, if this took a minute
        assert len(told(caplog)) == 1


def test_a_server_that_loads_its_file(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """A replica that takes over its primary's data refuses all commands on open connections meanwhile. It
    loads slowly here, by settings that Redis has for its own tests."""
    slow = ["key-load-delay 20000", "loading-process-events-interval-bytes 1024"]
    quick = ["repl-diskless-sync-delay 0", "rdbcompression no"]
    with KeyValueServer(extra=slow) as server, KeyValueServer(extra=quick) as primary:
        with control(primary) as client:
            pipe = client.pipeline(transaction=False)
            for number in range(200):
                pipe.set(f"kvpool:{number}", "x" * 20_000)
            pipe.execute()
        store = connect(server)
        assert store.exists([b"kvpool:1"], soon()) == [MISS]
        with control(server) as client:
            client.execute_command("REPLICAOF", primary.host, primary.port)
        wait_until("it loads", lambda: store.exists([b"kvpool:1"], soon()) == [FAILED])
        assert store.errors["store refused LOADING"] >= 1
        with control(server) as client:
            client.config_set("key-load-delay", 0)
        wait_until("it has loaded", lambda: store.exists([b"kvpool:1"], soon()) == [HIT])
        assert store.generation >= 2
        assert any("LOADING" in line for line in caplog.text.splitlines())


def test_a_password_that_came_later(
    kind: ServerKind, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """NOAUTH on an open connection: the next one reads the file."""
    secret = tmp_path / "password"
    with KeyValueServer(kind) as server:
        secret.write_text("mizzen")
        with control(server) as client:
            client.config_set("requirepass", "mizzen")
            store = connect(server, password_file=str(secret))
            assert put(store, VALUE) == [HIT]
            client.execute_command("ACL", "SETUSER", "default", "reset", "on", ">mizzen", "~*", "+@all")
        assert put(store, VALUE) in ([HIT], [FAILED])
        wait_until("it is written", lambda: put(store, VALUE) == [HIT])
        assert "mizzen" not in caplog.text


# ---- a server that takes nothing, and gives ------------------------------------------------------------------------


def full(server: KeyValueServer, _: Path) -> None:
    """Evicts nothing."""
    with control(server) as client:
        client.config_set("maxmemory", "1")


def without_a_disk(server: KeyValueServer, folder: Path) -> None:
    """Its snapshots fail."""
    with control(server) as client:
        client.config_set("save", "1 1")
        client.config_set("stop-writes-on-bgsave-error", "yes")
        (server.folder / "dump.rdb").mkdir()
        (server.folder / "dump.rdb" / "in-the-way").touch()
        client.set("changed", "1")
        client.bgsave()
        wait_until("it failed", lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


def without_replicas(server: KeyValueServer, _: Path) -> None:
    """Wants one."""
    with control(server) as client:
        client.config_set("min-replicas-to-write", "1")


@pytest.mark.parametrize(
    ("word", "happens"), [("OOM", full), ("MISCONF", without_a_disk), ("NOREPLICAS", without_replicas)]
)
def test_reads_go_on(
    word: str,
    happens: Callable[[KeyValueServer, Path], None],
    kind: ServerKind,
    connect: Connect,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Writes fail and are counted by their name, on one connection, which nobody leaves alone because of it."""
    with KeyValueServer(kind) as server:
        breaker = Breaker()
        store = connect(server, breaker=breaker)
        assert put(store, VALUE) == [HIT]
        happens(server, tmp_path)
        for _ in range(3):
            assert put(store, {b"kvpool:2": b"x", b"kvpool:3": noise(1, MIB)}) == [FAILED] * 2
            assert get(store, list(VALUE), [5]) == ([HIT], [b"value"])
        assert store.errors == {f"store refused {word}": 6}
        assert (store.generation, breaker.closed) == (1, True)
        (line,) = told(caplog)
        assert f"{server.host}:{server.port} refuses: {word} " in line
        assert "blocks are read and not written" in line


# ---- a server that gives nothing either ----------------------------------------------------------------------------


def reached(presence: Presence) -> bool:
    return presence.reachable


@contextmanager
def watched(store: Store) -> Iterator[Presence]:
    """The scheduler's half, as an engine has it."""
    presence = Presence(
        store,
        names=lambda key: [b"kvpool:%s/%d" % (key, rank) for rank in range(2)],
        timeout_s=lambda _: PATIENCE_S,
        patience_s=PATIENCE_S,
        greeting=(b"kvpool:identity", memoryview(b"document")),
    )
    try:
        wait_until("it tried", lambda: presence._asker.tried)
        yield presence
    finally:
        presence.close()


def test_a_user_without_rights(
    kind: ServerKind, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PING is allowed, the pool's keys are not: unreachable, until they are."""
    secret = tmp_path / "password"
    secret.write_text("mizzen")
    with KeyValueServer(kind) as server, control(server) as client:
        client.acl_setuser("kv", enabled=True, passwords=["+mizzen"], keys=["other:*"], commands=["+@all"])
        store = connect(server, username="kv", password_file=str(secret))
        assert put(store, VALUE) == get(store, list(VALUE), [5])[0] == store.exists(list(VALUE), soon()) == [FAILED]
        assert store.ping(soon()) is HIT
        assert store.errors == {"store refused NOPERM": 3}
        (line,) = told(caplog)
        assert "NOPERM" in line
        assert "neither read nor written" in line
        assert "mizzen" not in caplog.text
        with watched(connect(server, username="kv", password_file=str(secret))) as presence:
            assert not presence.reachable
            wait_until("it is counted", lambda: presence.take_counts()["store refused NOPERM"] >= 1)
            client.acl_setuser("kv", enabled=True, keys=["kvpool:*"], commands=["+@all"])
            wait_until("it is reached", lambda: presence.reachable)
        assert put(store, VALUE) == [HIT]
        assert store.generation == 1


def test_a_user_who_may_not_touch(kind: ServerKind, connect: Connect, tmp_path: Path) -> None:
    """Rights from before that command was used: presence is asked for by EXISTS, and nothing is lost by it."""
    secret = tmp_path / "password"
    secret.write_text("mizzen")
    with KeyValueServer(kind) as server, control(server) as client:
        client.acl_setuser(
            "kv", enabled=True, passwords=["+mizzen"], keys=["kvpool:*"],
            commands=["+get", "+set", "+exists", "+ping"],
        )  # fmt: skip
        store = connect(server, username="kv", password_file=str(secret))
        put(store, VALUE)
        for _ in range(2):
            assert store.exists_all([list(VALUE), [*VALUE, b"kvpool:2"]], soon(), touch=True) == [HIT, MISS]
        assert not store.errors


def in_cluster_mode() -> KeyValueServer:
    """Its port for other members is not derived from the other one, which may be too large for that."""
    return KeyValueServer(
        extra=["cluster-enabled yes", "cluster-require-full-coverage no", f"cluster-port {free_port()}"]
    )


@pytest.fixture
def clustered() -> Iterator[KeyValueServer]:
    """A server in cluster mode. Which slots it serves, a test says."""
    with in_cluster_mode() as server:
        yield server


def test_a_cluster_that_serves_nothing(
    clustered: KeyValueServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """CLUSTERDOWN for every key, and PONG for PING."""
    store = connect(clustered)
    assert put(store, VALUE) == store.exists(list(VALUE), soon()) == [FAILED]
    assert store.ping(soon()) is HIT
    assert store.errors == {"store refused CLUSTERDOWN": 2}
    assert len(told(caplog)) == 1
    with watched(connect(clustered)) as presence:
        assert not presence.reachable
        with control(clustered) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until("it is reached", lambda: presence.reachable)


def test_a_cluster_of_several(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """MOVED for what another one has. Not served, and said so."""
    with in_cluster_mode() as one, in_cluster_mode() as two:
        with control(one) as first, control(two) as second:
            first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
            second.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
            second.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
            (bus,) = (line.split()[-1] for line in two._config.read_text().splitlines() if "cluster-port" in line)
            first.execute_command("CLUSTER", "MEET", two.host, two.port, bus)
            wait_until("they met", lambda: b"slots_assigned:16384" in first.execute_command("CLUSTER", "INFO"))
        store = connect(one)
        values = {b"kvpool:%d" % number: b"x" for number in range(40)}
        wait_until("it answers", lambda: HIT in put(store, values))
        store.errors.clear()
        outcomes = put(store, values)
        assert set(outcomes) == {HIT, FAILED}
        assert store.errors == {"store refused MOVED": outcomes.count(FAILED)}
        assert any("without cluster mode" in line for line in told(caplog))


def test_a_cluster_of_one(clustered: KeyValueServer, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """Serves all keys, but no question about keys of several slots: they are asked for one by one."""
    with control(clustered) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    store = connect(clustered)
    values = {b"kvpool:%d" % number: b"x" for number in range(40)}
    wait_until("it serves", lambda: put(store, values) == [HIT] * 40)
    caplog.clear()
    store.errors.clear()
    keys = list(values)
    for _ in range(2):
        assert store.exists_all([keys[:20], keys[20:], [keys[0], b"kvpool:absent"]], soon()) == [HIT, HIT, MISS]
    assert (told(caplog), store.errors) == ([], {})
