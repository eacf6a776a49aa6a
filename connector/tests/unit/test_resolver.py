"""Names of stores, where the resolver hangs, fails or changes its mind. It is a stand-in but for the last test, which has a
nameserver that never answers."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from connector.tests.unit.slabs import ENVIRONMENT
from kvpool_connector.config import RemoteStore
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.stores import Breaker, Outcome, Store
from kvpool_connector.stores.connection import Connection, Late, Stalled
from kvpool_connector.stores.factory import make_store
from kvpool_connector.stores.questions import Unanswered
from kvpool_connector.stores.resolver import Resolver
from testkit.patience import PATIENCE_S, promptly
from testkit.servers import wait_until

NAME = "store.example"
REAL = socket.getaddrinfo


class Nameserver:
    """Answers for `NAME` in place of the C library, as a test says."""

    def __init__(self) -> None:
        self.hosts = ["127.0.0.1"]
        self.error: OSError | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.asked = 0

    def getaddrinfo(self, host: str, port: int, **options: int) -> Any:
        """See :func:`socket.getaddrinfo`."""
        if host != NAME or options["flags"] & socket.AI_NUMERICHOST:
            return REAL(host, port, **options)
        self.asked += 1
        self.answers.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return [found for host in self.hosts for found in REAL(host, port, **options)]


@pytest.fixture
def nameserver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nameserver]:
    """It answers in the end, so that no thread stays behind."""
    it = Nameserver()
    monkeypatch.setattr(socket, "getaddrinfo", it.getaddrinfo)
    yield it
    it.answers.set()
    wait_until("all threads ended", lambda: all(one.name != "kvpool-resolver" for one in threading.enumerate()))


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that accepts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def hosts(resolver: Resolver, host: str = NAME, seconds: float = PATIENCE_S) -> list[str]:
    """Its addresses."""
    return [address.at[0] for address in resolver.addresses(host, 1, time.monotonic() + seconds)]


def test_an_address_is_not_asked_about(nameserver: Nameserver) -> None:
    nameserver.answers.clear()
    assert hosts(Resolver(), "127.0.0.1") == ["127.0.0.1"]
    assert hosts(Resolver(), "::1") == ["::1"]


def test_a_resolver_that_hangs_ends_by_the_deadline(nameserver: Nameserver) -> None:
    nameserver.answers.clear()
    with promptly(0.5), pytest.raises(Unanswered, match=NAME):
        hosts(Resolver(), seconds=0.1)


def test_one_question_at_a_time(nameserver: Nameserver) -> None:
    """A resolver that hangs costs one thread, however often it is needed."""
    resolver = Resolver()
    nameserver.answers.clear()
    for _ in range(5):
        with pytest.raises(Unanswered):
            hosts(resolver, seconds=0.01)
    assert nameserver.asked == 1
    nameserver.answers.set()
    assert hosts(resolver) == ["127.0.0.1"]


def test_the_last_answer_is_used_while_it_hangs(nameserver: Nameserver, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and a later answer is believed at once."""
    resolver = Resolver()
    hosts(resolver)
    nameserver.answers.clear()
    assert hosts(resolver, seconds=0.01) == hosts(resolver, seconds=0.01) == ["127.0.0.1"]
    assert caplog.text.count(f"the address of {NAME!r} is; the last answer is used") == 1
    nameserver.hosts = ["127.0.0.2"]
    nameserver.answers.set()
    wait_until("the new answer", lambda: hosts(resolver) == ["127.0.0.2"])


def test_an_answer_that_comes_late_is_kept(nameserver: Nameserver) -> None:
    """A nameserver that is always slower than a store may be silent must not keep it away for ever."""
    resolver = Resolver()
    nameserver.answers.clear()
    with pytest.raises(Unanswered):
        hosts(resolver, seconds=0.01)
    nameserver.answers.set()
    assert hosts(resolver) == ["127.0.0.1"]
    nameserver.answers.clear()
    assert hosts(resolver, seconds=0.01) == ["127.0.0.1"]


@pytest.mark.parametrize("code", [socket.EAI_AGAIN, socket.EAI_NONAME])
def test_an_error_after_an_answer(nameserver: Nameserver, code: int) -> None:
    """Where no nameserver could be asked, the last answer counts; a name that is gone is gone."""
    resolver = Resolver()
    hosts(resolver)
    nameserver.error = socket.gaierror(code, "said so")
    if code == socket.EAI_AGAIN:
        assert hosts(resolver) == ["127.0.0.1"]
    else:
        with pytest.raises(socket.gaierror, match="said so"):
            hosts(resolver)


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example"])
def test_what_is_no_name(host: str) -> None:
    with pytest.raises(OSError, match="is not a host name"):
        hosts(Resolver(), host)


# ---- a connection ------------------------------------------------------------------------------------------------


@pytest.fixture
def dial(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Connection]:
    """Makes connections with a resolver of the test's own."""
    monkeypatch.setattr("kvpool_connector.stores.connection.RESOLVER", Resolver())

    def connect(port: int, seconds: float, stall_s: float) -> Connection:
        return Connection(NAME, port, time.monotonic() + seconds, stall_s)

    return connect


def test_a_connection_waits_for_a_name_as_for_a_byte(
    nameserver: Nameserver, dial: Callable[..., Connection], port: int
) -> None:
    """A resolver's silence is a server's, and the caller's deadline is his."""
    nameserver.answers.clear()
    with promptly(0.6), pytest.raises(Unanswered):
        dial(port, 60, 0.1)
    with promptly(0.6), pytest.raises(Late) as late:
        dial(port, 0.1, 60)
    assert 0 < late.value.silent_s <= 0.1


def test_a_connection_is_made_while_the_resolver_hangs(
    nameserver: Nameserver, dial: Callable[..., Connection], port: int
) -> None:
    dial(port, 60, 10).close()
    nameserver.answers.clear()
    dial(port, 60, 0.5).close()


def test_all_addresses_share_one_deadline(nameserver: Nameserver, dial: Callable[..., Connection]) -> None:
    """The kernel of the last one drops the first packet, as that of a Pod that is gone; before it come some that refuse."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        filler = [socket.socket() for _ in range(4)]
        for one in filler:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        nameserver.hosts = ["127.0.0.1"] * 5
        with promptly(1.0), pytest.raises(Stalled):
            dial(port, 60, 0.4)
        for one in filler:
            one.close()


def test_the_next_address_is_tried(nameserver: Nameserver, dial: Callable[..., Connection], port: int) -> None:
    nameserver.hosts = ["127.0.0.3", "127.0.0.1"]
    dial(port, 60, 10).close()


# ---- a store -----------------------------------------------------------------------------------------------------

ALONE = {"type": "redis", "host": NAME}
GROUP = {
    "type": "redis",
    "sentinel": {"master_name": "kvpool", "endpoints": [{"host": NAME, "port": 1}, {"host": NAME, "port": 2}]},
}


@pytest.fixture(params=[ALONE, GROUP, {"type": "lmcache", "host": NAME}], ids=["redis", "sentinels", "lmcache"])
def store(request: pytest.FixtureRequest, nameserver: Nameserver, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Whose name is not resolved. It may be silent for 0.2 s."""
    monkeypatch.setattr("kvpool_connector.stores.connection.RESOLVER", Resolver())
    nameserver.answers.clear()
    settings = request.param | {"timeouts": {"stall_ms": 200}}
    return make_store(TypeAdapter[RemoteStore](RemoteStore).validate_python(settings), Breaker())


@pytest.mark.parametrize("seconds", [0.1, 60.0])
def test_a_question_about_a_store_without_address(store: Store, seconds: float) -> None:
    """By its deadline, and long before a late one. Of a group, each sentinel has its share."""
    with promptly(min(seconds, 2 * 0.2) + 0.3):
        assert store.exists([b"key"], time.monotonic() + seconds) in ([Outcome.TIMEOUT], [Outcome.STALLED])


def test_a_read_from_a_store_without_address(store: Store) -> None:
    row = memoryview(bytearray(8))
    with promptly(2 * 0.2 + 0.3):
        assert store.get_into([b"key"], [row], time.monotonic() + 60) == [Outcome.STALLED]


def test_a_lookup_in_a_store_without_address(store: Store) -> None:
    """At the start, when nobody knows yet whether the store is there: the request waits for its deadline."""
    presence = Presence(store, names=lambda key: [key], timeout_s=lambda _: 0.1, patience_s=60)
    with promptly(0.1 + 0.3):
        assert presence.ask(b"key", "r") is None
        presence.flush()
        wait_until("there is an answer", presence.take_answers, poll_s=0.002)
        assert presence.ask(b"key", "r") is False
    with promptly(3):
        presence.close()


# ---- a real nameserver -------------------------------------------------------------------------------------------

CHILD = """
import socket, sys, time
from kvpool_connector.config import RemoteStore
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.stores import Breaker, Outcome, Store
from kvpool_connector.stores.connection import Connection
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.53", 53))
began = time.monotonic()
try:
    Connection("store.example", 1, began + 60, 0.3)
except TimeoutError as error:
    print(type(error).__name__, silent.recv(512).count(b"example"))
print(time.monotonic() - began)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False).returncode != 0,
    reason="takes root, for a network and a resolv.conf of the child's own",
)
def test_a_nameserver_that_never_answers(tmp_path: Path) -> None:
    """The C library's resolver asks it, and would wait for 5 s twice."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\n")
    alone = 'ip link set lo up && mount --bind "$3" /etc/resolv.conf && exec "$1" -c "$2"'
    child = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", alone, "sh", sys.executable, CHILD, resolv],
        capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    said, seconds = child.stdout.splitlines()
    assert said == "Unanswered 1"
    assert float(seconds) < 4
