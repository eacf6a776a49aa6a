"""What an engine says of kvpool: real HTTP on loopback, texts as the Prometheus client writes them."""

from __future__ import annotations

import gzip
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from kvpool_operator.api.settings import Probes
from kvpool_operator.kube import ApiError
from kvpool_operator.observe.dial import Dialer
from kvpool_operator.observe.engine_metrics import ask, said
from kvpool_operator.status.observed import EngineAddress, EngineSays, EngineState
from testkit.patience import PATIENCE_S


def dialer(probes: Probes | None = None, *api_servers: str) -> Dialer:
    """One that refuses nothing but these API servers, unless told otherwise."""

    async def hosts() -> tuple[str, ...]:
        return api_servers

    return Dialer(probes or Probes(refused_networks=()), hosts)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def metrics(*states: tuple[str, str, float], vllm: bool = True, ours: bool = False) -> str:
    """The metrics of an engine in these states: word, reason, and 1 or 0."""
    registry = CollectorRegistry()
    if vllm:
        Gauge("vllm:num_requests_running", "Requests.", ("engine",), registry=registry).labels("0").set(3)
    if ours:
        Counter("kvpool:events", "Events.", registry=registry).inc()
    if states:
        gauge = Gauge("kvpool_engine_state", "State.", ("state", "reason"), registry=registry)
        for state, reason, value in states:
            gauge.labels(state, reason).set(value)
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (metrics(("active", "switched on", 1)), EngineSays(EngineState.ACTIVE, "switched on")),
        (
            metrics(("active", "first", 0), ("skipped", 'a "quoted" \\ reason', 1)),
            EngineSays(EngineState.SKIPPED, 'a "quoted" \\ reason'),
        ),
        (metrics(("disabled", "a\nb\x1b[31m", 1)), EngineSays(EngineState.DISABLED, "a b [31m")),
        (metrics(("disabled", "x" * 900, 1)), EngineSays(EngineState.DISABLED, "x" * 200)),
        (metrics(), EngineSays(EngineState.ABSENT, "")),
        (metrics(("active", "former", 0)), None),
        (metrics(("absent", "not a word of an engine's", 1), vllm=False), None),
        (metrics(ours=True), None),
        (metrics(vllm=False), None),
        ("<html>not metrics</html>", None),
        ('kvpool_engine_state{state="active" 1\n', None),
        ("", None),
    ],
)
def test_what_a_text_says(text: str, expected: EngineSays | None) -> None:
    assert said(text) == expected


@asynccontextmanager
async def engine(handler: Handler) -> AsyncIterator[EngineAddress]:
    app = web.Application()
    app.add_routes([web.get("/metrics", handler), web.get("/elsewhere", answers(metrics(("active", "", 1))))])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield EngineAddress("127.0.0.1", int(runner.addresses[0][1]), "run")
    finally:
        await runner.cleanup()


def answers(text: str, status: int = 200) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=text, status=status)

    return handler


async def leads_elsewhere(_: web.Request) -> web.Response:
    raise web.HTTPFound("/elsewhere")


async def writes_for_ever(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"vllm:x 1\n" * 100_000)


async def breaks_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"vllm:x 1\n")
    assert request.transport is not None
    request.transport.close()
    return response


async def test_an_engine_that_answers() -> None:
    text = metrics(("active", "switched on", 1)) + "vllm:x 1\n" * 300_000
    async with engine(answers(text)) as address:
        assert await ask(address, dialer()) == EngineSays(EngineState.ACTIVE, "switched on")


@pytest.mark.parametrize("handler", [answers(metrics(("active", "", 1)), status=500), leads_elsewhere, breaks_off])
async def test_an_answer_that_says_nothing(handler: Handler) -> None:
    async with engine(handler) as address:
        assert await ask(address, dialer()) is None


async def test_an_answer_without_an_end_is_not_read_on() -> None:
    async with engine(writes_for_ever) as address:
        assert await ask(address, dialer()) == EngineSays(EngineState.ABSENT, "")


async def test_nobody_answers() -> None:
    async with engine(answers("")) as address:
        pass
    assert await ask(address, dialer()) is None


async def test_an_address_that_the_operator_does_not_ask() -> None:
    asked = []

    async def handler(_: web.Request) -> web.Response:
        asked.append(1)
        return web.Response(text=metrics(("active", "", 1)))

    async with engine(handler) as address:
        assert await ask(address, dialer(Probes())) is None
        assert await ask(address, dialer(None, "127.0.0.1")) is None
        assert not asked
        refused = Probes(refused_networks=(ipaddress.ip_network("10.0.0.0/8"),))
        assert await ask(address, dialer(refused, "10.0.0.1")) is not None


async def test_api_servers_that_nobody_knows() -> None:
    async def hosts() -> tuple[str, ...]:
        raise ApiError(status=503, message="no")

    async with engine(answers(metrics(("active", "", 1)))) as address:
        assert await ask(address, Dialer(Probes(refused_networks=()), hosts)) is None


async def test_a_compressed_answer_is_not_unpacked() -> None:
    """Some kilobytes could become gigabytes in the operator's memory."""

    async def packed(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        body = gzip.compress(metrics(("active", "", 1)).encode())
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async with engine(packed) as address:
        assert await ask(address, dialer()) is None


async def test_nameservers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers_come = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers_come.wait(PATIENCE_S) and [])
    dial = dialer(Probes(refused_networks=(), deadline_seconds=0.1), "api.example")
    try:
        assert await ask(EngineAddress("127.0.0.1", 1, "run"), dial) is None
    finally:
        answers_come.set()
