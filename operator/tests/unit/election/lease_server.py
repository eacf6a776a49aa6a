"""A stand-in for the API server that keeps one Lease, by its rules: versions, conflicts, merge patches.

The elector is tested with it as with no real one: each request can be refused, held or lost on its
way back at a moment that a test chooses.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2 as httpx

from kvpool_operator.kube import Client


class LeaseServer:
    """Keeps a Lease.

    Attributes:
        lease: the object; None: there is none.
        reachable: clear: requests wait until it is set.
        lossy: requests are carried out, and their answers are lost.
        requests: method and holder of each request that was carried out.
    """

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.reachable = asyncio.Event()
        self.reachable.set()
        self.lossy = False
        self.requests: list[tuple[str, str]] = []
        self._version = 0
        transport = httpx.MockTransport(self._answer)
        self.client = Client(httpx.AsyncClient(transport=transport, base_url="https://cluster"))

    @property
    def holder(self) -> str:
        return str((self.lease or {}).get("spec", {}).get("holderIdentity") or "")

    def write(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Write the Lease, as another replica would."""
        self._version += 1
        metadata = {"name": "kvpool-operator", "resourceVersion": str(self._version)}
        self.lease = {"metadata": metadata, "spec": spec}
        return self.lease

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        await self.reachable.wait()
        response = self._carried_out(request)
        if self.lossy:
            raise httpx.ReadError("lost")
        return response

    def _carried_out(self, request: httpx.Request) -> httpx.Response:
        sent = json.loads(request.content) if request.content else {}
        holder = (sent.get("spec") or {}).get("holderIdentity") or ""
        self.requests.append((request.method, holder))
        if request.method == "POST":
            if self.lease is not None:
                return httpx.Response(409, json={"message": "it exists"})
            return httpx.Response(201, json=self.write(sent["spec"]))
        if self.lease is None:
            return httpx.Response(404, json={"message": "there is none"})
        if request.method == "GET":
            return httpx.Response(200, json=self.lease)
        if sent["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            return httpx.Response(409, json={"message": "it changed"})
        return httpx.Response(200, json=self.write(self.lease["spec"] | sent["spec"]))
