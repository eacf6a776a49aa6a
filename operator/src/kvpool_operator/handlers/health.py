"""``/healthz`` and ``/readyz`` for the kubelet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

STUCK_SECONDS = 180.0
"""No reconciliation takes this long: every request in it has a timeout."""


@asynccontextmanager
async def serve(
    *, host: str, port: int, longest_in_hand: Callable[[], float], is_ready: Callable[[], bool]
) -> AsyncIterator[int]:
    """Serve while the context is open; gives the port (0 picks one)."""

    async def healthz(_: web.Request) -> web.Response:
        # That it answers at all shows that the event loop turns.
        stuck = longest_in_hand() > STUCK_SECONDS
        return web.Response(status=503 if stuck else 200, text="a reconciliation hangs\n" if stuck else "ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=200 if is_ready() else 503, text="ok\n" if is_ready() else "starting\n")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
