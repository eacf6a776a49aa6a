"""``/healthz`` and ``/readyz`` for the kubelet, ``/metrics`` for whoever wants to know how much the API server is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

STUCK_SECONDS = 180.0
"""No reconciliation takes this long: every request in it has a timeout."""


@asynccontextmanager
async def serve(
    *,
    host: str,
    port: int,
    longest_in_hand: Callable[[], float],
    is_ready: Callable[[], bool],
    requests: Mapping[str, int],
    further_metrics: Callable[[], Iterable[str]] = tuple,
) -> AsyncIterator[int]:
    """Serve while the context is open; gives the port (0 picks one).

    Args:
        requests: how often the API server was asked so far, by HTTP method.
        further_metrics: gives more lines for /metrics.
    """

    async def healthz(_: web.Request) -> web.Response:
        # That it answers at all shows that the event loop turns.
        stuck = longest_in_hand() > STUCK_SECONDS
        return web.Response(status=503 if stuck else 200, text="a reconciliation hangs\n" if stuck else "ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=200 if is_ready() else 503, text="ok\n" if is_ready() else "starting\n")

    async def metrics(_: web.Request) -> web.Response:
        lines = ["# TYPE kvpool_operator_api_requests_total counter"]
        lines += [f'kvpool_operator_api_requests_total{{method="{name}"}} {count}' for name, count in requests.items()]
        lines += further_metrics()
        return web.Response(text="\n".join(lines) + "\n")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
