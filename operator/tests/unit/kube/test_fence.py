"""No write leaves the process when the fence is closed, not even one that was on its way. Over a real connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx2 as httpx
import pytest

from kvpool_operator.kube import CONFIG_MAP, Client, NotLeading
from kvpool_operator.kube.fence import Fence
from testkit.patience import PATIENCE_S

MANIFEST = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "n", "name": "c"}}
BODY = b'{"metadata": {}}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_is_open_until_its_time() -> None:
    clock = Clock()
    fence = Fence(clock)
    with pytest.raises(NotLeading):
        fence.check()
    fence.extend(108)
    fence.extend(105)
    assert fence.remaining() == 8
    fence.check()
    clock.now = 108
    assert (fence.is_open(), fence.remaining()) == (False, 0)
    fence.extend(200)
    assert fence.is_open()
    fence.close()
    assert not fence.is_open()


@contextlib.asynccontextmanager
async def listening(heard: bytearray, connected: asyncio.Event) -> AsyncIterator[str]:
    """Answer every request, note what comes, and end when the clients have gone."""
    talks: list[asyncio.Task[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        while chunk := await reader.read(65536):
            heard.extend(chunk)
            writer.write(ANSWER)
        writer.close()
        await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.create_task(answer(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.gather(*talks)


async def test_reads_pass_and_writes_do_not() -> None:
    heard = bytearray()
    async with listening(heard, asyncio.Event()) as address, httpx.AsyncClient(base_url=address) as http:
        client = Client(http, Fence(Clock()))
        await client.get(CONFIG_MAP, "n", "c")
        assert heard.startswith(b"GET")
        heard.clear()
        for write in (
            client.apply(CONFIG_MAP, MANIFEST),
            client.create(CONFIG_MAP, MANIFEST),
            client.merge(CONFIG_MAP, "n", "c", {}),
            client.patch(CONFIG_MAP, "n", "c", []),
            client.delete(CONFIG_MAP, "n", "c", uid="u"),
        ):
            with pytest.raises(NotLeading):
                await write
        assert heard == b""
        assert dict(client.requests) == {"GET": 1}


async def test_a_write_that_waits_for_its_connection_is_not_sent_afterwards() -> None:
    """As in a process that is stopped while it connects."""
    heard = bytearray()
    connected = asyncio.Event()
    clock = Clock()
    fence = Fence(clock)
    fence.extend(108)

    class Slow(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            clock.now = 108  # after the first check, and before anything is sent
            return await super().handle_async_request(request)

    async with listening(heard, connected) as address:
        async with httpx.AsyncClient(base_url=address, transport=Slow()) as http:
            with pytest.raises(NotLeading):
                await Client(http, fence).apply(CONFIG_MAP, MANIFEST)
        async with asyncio.timeout(PATIENCE_S):
            await connected.wait()
        assert heard == b""
