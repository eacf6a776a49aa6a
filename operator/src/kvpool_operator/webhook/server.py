"""HTTPS for the API server: one path, an AdmissionReview each way, and how long each answer took."""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from kvpool_operator.injection import review
from kvpool_operator.injection.outcome import Outcome

_log = logging.getLogger(__name__)
Decide = Callable[[Mapping[str, Any]], Awaitable[Outcome | None]]
_BODY_LIMIT = 7 << 20
"""Bytes of a review. An object has at most some 3 MB, and an update carries two."""
_REMEMBERED = 1000


class Timings(Collector):
    """Durations of the last answers, in seconds."""

    def __init__(self) -> None:
        self._last: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        self.count = 0

    def add(self, seconds: float) -> None:
        self._last.append(seconds)
        self.count += 1

    def quantile(self, share: float) -> float:
        """The value that this share of the last answers did not exceed; 0 before the first."""
        ordered = sorted(self._last)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0

    def collect(self) -> Iterable[Metric]:
        """Return the number of answers, and quantiles of the last ones. The library's own summary has no quantiles."""
        name = "kvpool_operator_webhook_seconds"
        family = Metric(name, "Time from the first byte of a review to its answer.", "summary")
        for share in (0.5, 0.99):
            family.add_sample(name, {"quantile": str(share)}, self.quantile(share))
        family.add_sample(f"{name}_count", {}, self.count)
        return [family]


def application(routes: Mapping[str, Decide], timings: Timings) -> web.Application:
    """The paths and who decides."""
    app = web.Application(client_max_size=_BODY_LIMIT)
    for path, decide in routes.items():
        app.router.add_post(path, _handler(decide, timings))
    return app


def _handler(decide: Decide, timings: Timings) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(incoming: web.Request) -> web.Response:
        began = time.perf_counter()
        try:
            asked = review.request_of(await asyncio.to_thread(_parsed, await incoming.read()))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        answer = review.response(asked, await _decided(decide, asked))
        response = web.json_response(answer)
        timings.add(time.perf_counter() - began)
        return response

    return handle


def _parsed(body: bytes) -> Any:
    """Return the JSON document of a body that anybody may have sent.

    Raises:
        ValueError: it is none, or it is nested too deeply.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None


async def _decided(decide: Decide, asked: Mapping[str, Any]) -> Outcome | None:
    """The decision; where ours is the fault the object passes as it is, and the reconciler says that it was missed."""
    try:
        return await decide(asked)
    except asyncio.CancelledError:
        raise
    except Exception:
        _log.exception(
            "webhook: %s %s/%s passes as it is", asked.get("kind"), asked.get("namespace"), asked.get("name")
        )
        return None


@asynccontextmanager
async def serve(app: web.Application, *, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve while the context is open; gives the port (0 picks one). The TLS context may change meanwhile."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
