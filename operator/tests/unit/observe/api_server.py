"""A stand-in for the API server, which answers, is silent, or fails as a test says."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx

from kvpool_operator.kube import Client


async def no_hosts() -> tuple[str, ...]:
    """Return the hosts of a cluster without an API server."""
    return ()


class ApiServer:
    """Counts what it is asked.

    Attributes:
        objects: by the end of their path.
        fault: an HTTP status for every answer; None: none, 0: no answer at all.
        held: ends of paths that are answered when they are taken out again.
    """

    def __init__(self, objects: dict[str, dict[str, Any]] | None = None) -> None:
        self.objects = objects or {}
        self.fault: int | None = None
        self.held: set[str] = set()
        self.asked = 0
        transport = httpx.MockTransport(self._answer)
        self.client = Client(httpx.AsyncClient(transport=transport, base_url="https://cluster"))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.fault == 0:
            await asyncio.Event().wait()
        if self.fault is not None:
            return httpx.Response(self.fault, json={"message": "a fault"})
        while any(request.url.path.endswith(end) for end in self.held):
            await asyncio.sleep(0.01)
        for end, body in self.objects.items():
            if request.url.path.endswith(end):
                return httpx.Response(200, json={"metadata": {}, **body})
        return httpx.Response(404, json={"message": "there is none"})
