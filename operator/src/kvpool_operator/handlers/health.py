"""``/healthz`` and ``/readyz`` for the kubelet, ``/metrics`` in Prometheus' text format."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

STUCK_SECONDS = 180.0
"""No reconciliation takes this long: every request in it has a timeout."""


class Readiness:
    """What must have happened once before the operator is ready, by name."""

    def __init__(self, *steps: str) -> None:
        self._missing = dict.fromkeys(steps)

    def done(self, step: str) -> None:
        """Say that a step happened, for the first time or again."""
        self._missing.pop(step, None)

    def missing(self) -> tuple[str, ...]:
        """Return the steps that did not happen yet, in the order in which they were named."""
        return tuple(self._missing)


@asynccontextmanager
async def serve(
    *,
    host: str,
    port: int,
    longest_in_hand: Callable[[], float],
    missing: Callable[[], Sequence[str]],
    metrics: CollectorRegistry,
) -> AsyncIterator[int]:
    """Serve while the context is open; gives the port (0 picks one).

    Args:
        missing: gives what the operator waits for before it is ready.
        metrics: what /metrics shows.
    """

    async def healthz(_: web.Request) -> web.Response:
        # That it answers at all shows that the event loop turns.
        stuck = longest_in_hand() > STUCK_SECONDS
        return web.Response(status=503 if stuck else 200, text="a reconciliation hangs\n" if stuck else "ok\n")

    async def readyz(_: web.Request) -> web.Response:
        steps = missing()
        if steps:
            return web.Response(status=503, text=f"waiting for: {', '.join(steps)}\n")
        return web.Response(text="ok\n")

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
