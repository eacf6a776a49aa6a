"""No name that a user wrote leads a request to another object. The server is a stand-in that answers everything
with one object, so whatever leaves the client is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2 as httpx
import pytest

from kvpool_operator.api.object_names import MOST_NAME, is_object_name
from kvpool_operator.kube import POOL, SECRET, ApiError, Client, NotFound, Refused

HOSTILE = [
    "",
    ".",
    "..",
    "../../kube-system/secrets/admin",
    "x/../../../../api/v1/secrets",
    "x/y",
    "%2e%2e",
    "..%2fsecrets",
    "x?limit=500",
    "x#y",
    "x\x00",
    "x\r\nHost: elsewhere",
    "x y",
    "Secret",
    "-x",
    "x-",
    "x..y",
    "\uff58",
    "x" * (MOST_NAME + 1),
    "x" * (1 << 20),
]


class Server:
    """Remembers the paths that it was asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        transport = httpx.MockTransport(self._answer)
        self.client = Client(httpx.AsyncClient(transport=transport, base_url="https://cluster"))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.raw_path.decode())
        return httpx.Response(200, json={"metadata": {"name": "x", "namespace": "team"}})


def manifest(namespace: str, name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": namespace, "name": name}}


Call = Callable[[Client, str, str], Coroutine[Any, Any, Any]]
WRITES: dict[str, Call] = {
    "apply": lambda client, namespace, name: client.apply(SECRET, manifest(namespace, name)),
    "merge": lambda client, namespace, name: client.merge(SECRET, namespace, name, {}),
    "patch": lambda client, namespace, name: client.patch(SECRET, namespace, name, []),
    "delete": lambda client, namespace, name: client.delete(SECRET, namespace, name, uid="1"),
}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_no_object_has_such_a_name(name: str) -> None:
    server = Server()
    for namespace, one in (("team", name), (name or "..", "x")):
        with pytest.raises(NotFound):
            asyncio.run(server.client.get(POOL, namespace, one))
    assert server.paths == []


@pytest.mark.parametrize("verb", WRITES)
def test_nothing_is_written_under_such_a_name(verb: str) -> None:
    server = Server()
    for name in HOSTILE:
        with pytest.raises(Refused):
            asyncio.run(WRITES[verb](server.client, "team", name))
        if name:
            with pytest.raises(Refused):
                asyncio.run(WRITES[verb](server.client, name, "x"))
    assert server.paths == []


@pytest.mark.parametrize("namespace", [name for name in HOSTILE if name], ids=lambda name: repr(name[:20]))
def test_no_namespace_has_such_a_name(namespace: str) -> None:
    server = Server()
    with pytest.raises(Refused):
        asyncio.run(server.client.list(SECRET, namespace, labels={}))
    with pytest.raises(Refused):
        asyncio.run(server.client.create(SECRET, manifest(namespace, "x")))
    assert server.paths == []


def test_names_that_objects_have() -> None:
    server = Server()
    for name in ("demo", "demo-store-auth", "a.b-c.d", "0", "x" * MOST_NAME):
        assert is_object_name(name)
        asyncio.run(server.client.get(SECRET, "team", name))
    assert server.paths[1] == "/api/v1/namespaces/team/secrets/demo-store-auth"


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("text", ["<html>", "[]", "null", "[" * 100_000, ""])
def test_an_answer_that_is_no_api_servers_is_an_error(status: int, text: str) -> None:
    """Such as that of a proxy. Nothing but ApiError comes out of the client, which all callers expect."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=text))

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
            await Client(http).get(SECRET, "team", "demo")

    with pytest.raises(ApiError):
        asyncio.run(ask())
