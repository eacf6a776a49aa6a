"""Whoever may make a pool chooses addresses that the operator asks: it reaches none by which that person gains something."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvpool_operator.api import Settings, parse_spec
from kvpool_operator.api.settings import Probes
from kvpool_operator.observe import dial as module
from kvpool_operator.observe.api_servers import ApiServers
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.dial import AddressRefusedError, Dialer
from kvpool_operator.observe.external import Login, probe_external
from kvpool_operator.observe.gather import Observer
from kvpool_operator.status.observed import StoreProbe, StoreState
from testkit.patience import PATIENCE_S

from .api_server import ApiServer, no_hosts

ANYWHERE = Probes(refused_networks=(), refuse_api_server=False, deadline_seconds=30)


@asynccontextmanager
async def listener(*answers: bytes) -> AsyncIterator[tuple[int, bytearray]]:
    """A server that gives one answer after the other, the last one for ever, and keeps what it was sent."""
    heard = bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        try:
            while data := await reader.read(4096):
                heard.extend(data)
                writer.write(left.pop(0) if len(left) > 1 else left[0])
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1.2.3",
        "localhost",
        "0.0.0.0",  # noqa: S104
        "0",
        "2130706433",
        "0x7f.1",
        "169.254.169.254",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
    ],
)
async def test_addresses_that_are_refused(host: str) -> None:
    """However they are written. Nothing is sent."""
    async with listener(b"+PONG\r\n") as (port, heard):
        spec = parse_spec({"backend": {"type": "Redis", "external": {"host": host, "port": port}}})
        found = await probe_external(Dialer(Probes(), no_hosts), spec, Login(password="canary"), Login())
    assert found.state is StoreState.ADDRESS_REFUSED
    assert not heard


def hosts(*names: str) -> Callable[[], Awaitable[tuple[str, ...]]]:
    async def known() -> tuple[str, ...]:
        return names

    return known


async def is_asked(dial: Dialer, host: str) -> bool:
    """Whether a connection to the host is tried. There need not be one."""
    try:
        async with dial.connection(host, 1, PATIENCE_S):
            return True
    except AddressRefusedError:
        return False
    except OSError:
        return True


async def test_the_api_server_is_refused_by_its_address() -> None:
    probes = Probes(refused_networks=())
    for host in ("127.0.0.1", "localhost"):
        assert not await is_asked(Dialer(probes, hosts("127.0.0.1")), host)
    elsewhere = Dialer(probes, hosts("192.0.2.1", "no-such-host.invalid"))
    async with listener(b"+PONG\r\n") as (port, _), elsewhere.connection("127.0.0.1", port, PATIENCE_S):
        pass


SLICE = {"endpoints": [{"addresses": ["127.0.0.8"]}, {"addresses": ["127.0.0.9"]}]}
"""Two nodes of a control plane."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def observer_dialer(server: ApiServer, clock: Callable[[], float] = lambda: 0.0) -> Dialer:
    return Dialer(Probes(refused_networks=()), ApiServers(server.client, clock).hosts)


async def test_the_control_planes_nodes_are_refused() -> None:
    server = ApiServer({"/namespaces/default/endpointslices/kubernetes": SLICE})
    dial = observer_dialer(server)
    asked = {host: await is_asked(dial, host) for host in ("127.0.0.7", "127.0.0.8", "127.0.0.9")}
    assert asked == {"127.0.0.7": True, "127.0.0.8": False, "127.0.0.9": False}
    assert server.asked == 1
    settings = Settings(probes=Probes(refused_networks=()))
    observer = Observer(server.client, Cache(), settings, lambda: 0.0, lambda _: ())
    spec = parse_spec({"backend": {"type": "Redis", "external": {"host": "127.0.0.8", "port": 1}}})
    found, _ = await observer.store_probe(("team", "pool"), spec)
    assert found is not None
    assert found.state is StoreState.ADDRESS_REFUSED


async def test_nodes_that_join_the_control_plane_are_refused_soon() -> None:
    server = ApiServer({"/endpointslices/kubernetes": {"endpoints": None}})
    clock = Clock()
    dial = observer_dialer(server, clock)
    assert await is_asked(dial, "127.0.0.8")
    server.objects = {"/endpointslices/kubernetes": SLICE}
    clock.now = 61
    assert not await is_asked(dial, "127.0.0.8")
    for fault in (503, 403):
        server.fault = fault
        clock.now += 100
        assert not await is_asked(dial, "127.0.0.8")


async def test_without_the_right_the_service_alone_is_refused(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.6")
    server = ApiServer()
    server.fault = 403
    clock = Clock()
    dial = observer_dialer(server, clock)
    assert not await is_asked(dial, "127.0.0.6")
    clock.now = 61
    assert await is_asked(dial, "127.0.0.8")
    assert caplog.text.count("probes refuse the API server's Service alone") == 1


async def test_nothing_is_asked_while_the_api_servers_are_unknown() -> None:
    server = ApiServer()
    server.fault = 503
    async with listener(b"+PONG\r\n") as (port, heard):
        spec = parse_spec({"backend": {"type": "Redis", "external": {"host": "127.0.0.1", "port": port}}})
        found = await probe_external(observer_dialer(server), spec, Login(), Login())
    assert found.state is StoreState.NOT_LOOKED_AT
    assert not heard


async def test_networks_are_a_setting() -> None:
    probes = Probes(refused_networks=(ipaddress.ip_network("192.0.2.0/24"),))
    with pytest.raises(AddressRefusedError):
        async with Dialer(probes, no_hosts).connection("192.0.2.7", 6379, PATIENCE_S):
            pass


async def test_the_address_that_was_checked_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere when it is asked again gains nothing."""
    asked: list[str] = []

    def addresses(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    async with listener(b"+PONG\r\n") as (port, _):
        monkeypatch.setattr(module, "_addresses", addresses)
        async with Dialer(ANYWHERE, no_hosts).connection("store.example", port, PATIENCE_S) as (_, writer):
            assert writer.get_extra_info("peername")[0] == "127.0.0.1"
    assert asked == ["store.example"]


async def test_few_at_a_time() -> None:
    """The others wait for their turn, and their deadline begins with it."""
    dial = Dialer(Probes(refused_networks=(), refuse_api_server=False, at_a_time=2), no_hosts)
    running = most = 0

    async def ask(port: int) -> None:
        nonlocal running, most
        async with dial.connection("127.0.0.1", port, PATIENCE_S):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1

    async with listener(b"+PONG\r\n") as (port, _):
        await asyncio.gather(*(ask(port) for _ in range(8)))
    assert most == 2


async def test_a_pool_with_many_silent_addresses_keeps_nobody_for_long() -> None:
    """Each has two seconds, and their turns may be all that is left. The whole has a deadline of its own."""
    dial = Dialer(Probes(refused_networks=(), refuse_api_server=False, at_a_time=1), no_hosts)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        endpoints = [{"host": "127.0.0.1", "port": port} for _ in range(16)]
        group = {"masterName": "prime", "endpoints": endpoints}
        spec = parse_spec({"backend": {"type": "Redis", "external": {"sentinel": group}}})
        async with asyncio.timeout(PATIENCE_S / 2):
            found = await probe_external(dial, spec, Login(), Login(), deadline_s=0.3)
    assert found == StoreProbe(StoreState.UNREACHABLE, "what the pool names did not all answer within 0.3 s")


async def test_names_that_are_not_answered_keep_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nameserver of the pool's author may never answer. The webhook reads Pods on the loop's threads, which must not wait."""
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.wait(PATIENCE_S) and [])
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    dial = Dialer(Probes(at_a_time=4), no_hosts)

    async def ask() -> None:
        async with dial.connection("store.example", 6379, 0.2):
            pass

    try:
        found = await asyncio.gather(*(ask() for _ in range(4)), return_exceptions=True)
        assert [type(error) for error in found] == [TimeoutError] * 4
        async with asyncio.timeout(PATIENCE_S / 4):
            assert await asyncio.to_thread(lambda: "read") == "read"
    finally:
        answers.set()


async def test_names_that_are_not_answered_keep_no_store_of_others_from_being_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their threads wait for the nameserver for a long time after the deadlines."""
    answers = threading.Event()
    resolve = socket.getaddrinfo

    def hang(host: str, *rest: Any, **further: Any) -> Any:
        if host.endswith(".example"):
            answers.wait(PATIENCE_S)
        return resolve(host, *rest, **further)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    dial = Dialer(Probes(at_a_time=2, refused_networks=(), refuse_api_server=False), no_hosts)

    async def ask(host: str, port: int, deadline_s: float) -> None:
        async with dial.connection(host, port, deadline_s):
            pass

    try:
        names = [ask(f"store-{number}.example", 6379, 0.05) for number in range(12)]
        found = await asyncio.gather(*names, return_exceptions=True)
        assert [type(error) for error in found] == [TimeoutError] * 12
        async with listener(b"+PONG\r\n") as (port, _):
            await ask("localhost", port, PATIENCE_S / 4)
    finally:
        answers.set()


async def ask_group(primary_hosts: list[str], *answers: bytes) -> tuple[StoreProbe, bytearray]:
    """Ask a sentinel that names a primary on loopback; what is said of it, and what the primary was sent."""
    async with listener(*answers) as (primary, heard):
        named = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(primary)), primary)
        async with listener(named) as (sentinel, _):
            group = {
                "masterName": "prime",
                "endpoints": [{"host": "127.0.0.1", "port": sentinel}],
                "primaryHosts": primary_hosts,
            }
            auth = {"secretRef": {"name": "s"}}
            spec = parse_spec({"backend": {"type": "Redis", "external": {"sentinel": group, "auth": auth}}})
            found = await probe_external(Dialer(ANYWHERE, no_hosts), spec, Login("ann", "canary-password"), Login())
            return found, heard


@pytest.mark.parametrize("hosts", [[], ["redis.example"], ["10.0.0.0/8"], ["127.0.0.2"]])
async def test_a_sentinel_does_not_get_the_password_sent_where_it_likes(hosts: list[str]) -> None:
    found, heard = await ask_group(hosts, b"-NOAUTH Authentication required.\r\n")
    assert b"canary" not in heard
    assert b"ann" not in heard
    assert found.state is StoreState.AVAILABLE
    assert "asks for a password" in found.detail


@pytest.mark.parametrize("answer", [b"+PONG\r\n", b"HTTP/1.1 400\r\n"])
async def test_what_a_sentinel_says_is_not_repeated(answer: bytes) -> None:
    """Else any server's answer would be read in the status of a pool whose author chose that server."""
    secret = "canary-" + "x" * 60
    named = f"*2\r\n${len(secret)}\r\n{secret}\r\n$4\r\n6379\r\n".encode()
    async with listener(named) as (sentinel, _):
        group = {"masterName": "prime", "endpoints": [{"host": "127.0.0.1", "port": sentinel}]}
        spec = parse_spec({"backend": {"type": "Redis", "external": {"sentinel": group}}})
        found = await probe_external(Dialer(ANYWHERE, no_hosts), spec, Login(), Login())
    assert "canary" not in found.detail
    told, _ = await ask_group([], answer)
    assert "the server that 127.0.0.1:" in told.detail


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["127.0.0.0/8"], ["redis.example", "127.0.0.1"]])
async def test_hosts_that_the_pool_names_are_sent_it(hosts: list[str]) -> None:
    found, heard = await ask_group(hosts, b"-WRONGPASS no\r\n")
    assert b"canary-password" in heard
    assert found.state is StoreState.AUTH_FAILED


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400\r\n", b"-DENIED x\r\n"])
async def test_a_primary_that_is_none(answer: bytes) -> None:
    found, _ = await ask_group([], answer)
    assert found.state is not StoreState.AVAILABLE
