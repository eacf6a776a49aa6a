"""When the operator says that it is ready: not before the first lists, and not before the webhook can be called."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from kvpool_operator import __main__ as program
from kvpool_operator.api import PLURAL, Settings
from kvpool_operator.handlers import watches
from kvpool_operator.kube import CHILD_KINDS, POD, POOL, Conflict
from kvpool_operator.webhook.keeper import Keeper
from testkit.patience import PATIENCE_S
from testkit.ports import free_port

from .observe.api_server import ApiServer

HOST = "127.0.0.1"
LISTS: dict[str, Any] = {f"/{kind.plural}": {"items": []} for kind in (POOL, POD, *CHILD_KINDS)}
LEASE: dict[str, Any] = {"/leases/kvpool-operator": {"metadata": {"resourceVersion": "1"}}}
OBJECTS = {"/v1alpha1": {"resources": [{"name": PLURAL}]}, **LISTS, **LEASE}
CERTIFICATE = "/secrets/kvpool-operator-webhook"


async def informer(*_: Any, started: asyncio.Event, **__: Any) -> None:
    """Stand in for kopf, which says early that it is ready."""
    started.set()
    await asyncio.Event().wait()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    made = ApiServer(OBJECTS)
    monkeypatch.setattr(program, "connect", lambda **_: made.client)
    monkeypatch.setattr(program, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(watches, "watch", informer)
    return made


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """An operator; gives the address of /readyz."""
    stop = asyncio.Event()
    port = free_port()
    operator = asyncio.create_task(program.run(settings, host=HOST, port=port, webhook_port=free_port(), stop=stop))
    try:
        yield f"http://{HOST}:{port}/readyz"
    finally:
        stop.set()
        await operator


async def until(address: str, status: int, text: str) -> None:
    """Ask until the answer is this one."""
    answer: tuple[int, str] | None = None
    async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE_S):
        while answer != (status, text):
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get(address) as response:
                    answer = response.status, await response.text()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ("/kvcachepools", "pools and their children, webhook"),
        ("/deployments", "pools and their children, webhook"),
        ("/pods", "Pods of others"),
        (CERTIFICATE, "webhook"),
    ],
)
async def test_not_ready_before(server: ApiServer, held: str, missing: str) -> None:
    server.held = {held}
    async with running(Settings.model_validate({"webhook": {"enabled": True}})) as address:
        await until(address, 503, f"waiting for: {missing}\n")
        server.held.clear()
        await until(address, 200, "ok\n")


async def test_ready_without_a_webhook(server: ApiServer) -> None:
    server.held = {CERTIFICATE}
    async with running(Settings()) as address:
        await until(address, 200, "ok\n")


async def test_a_fault_at_the_start_is_tried_again(server: ApiServer) -> None:
    server.objects = {end: body for end, body in OBJECTS.items() if end != "/secrets"}
    async with running(Settings.model_validate({"webhook": {"enabled": True}})) as address:
        await until(address, 503, "waiting for: pools and their children, webhook\n")
        server.objects = OBJECTS
        await until(address, 200, "ok\n")


async def test_no_certificate_is_served_where_another_operator_was_first(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: Any) -> None:
        raise Conflict(status=409, message="it is there already")

    keeper = Keeper(server.client, Settings().webhook, leads=lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(server.client, "create", lose)
        await keeper.round()
    assert not keeper.is_serving
    await keeper.round()
    assert keeper.is_serving


async def test_a_follower_serves_what_it_reads_and_writes_nothing(server: ApiServer) -> None:
    written: dict[str, dict[str, Any]] = {}

    async def create(_: Any, manifest: dict[str, Any]) -> dict[str, Any]:
        written[CERTIFICATE] = manifest
        return manifest

    server.client.create = create  # type: ignore[method-assign,assignment]
    follower = Keeper(server.client, Settings().webhook, leads=lambda: False)
    await follower.round()
    assert not follower.is_serving
    assert not written
    await Keeper(server.client, Settings().webhook, leads=lambda: True).round()
    server.objects = {**OBJECTS, **written}
    await follower.round()
    assert follower.is_serving
