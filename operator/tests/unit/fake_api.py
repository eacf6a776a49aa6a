"""A stand-in for the API server, in memory, that can fail at any one call. It knows paths, verbs and labels, and neither schemas
nor rights; what the real one makes of our objects is seen in operator/tests/apiserver. Its workloads are ready at once."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx2 as httpx

from kvpool_operator.kube import Client, Resource

Fault = Callable[[int, httpx.Request], httpx.Response | None]
_WORKLOADS = ("deployments", "statefulsets", "daemonsets")


def no_fault(number: int, request: httpx.Request) -> None:
    """Let every call pass."""


def answer_with(status: int) -> httpx.Response:
    """Return an answer that carries out nothing; 0: none comes."""
    if not status:
        raise httpx.ConnectError("nobody listens")
    return httpx.Response(status, json={"kind": "Status", "message": f"canary {status}", "code": status})


GARBAGE = (b"", b"<html>canary</html>", b'{"kind": "Pod"', b"[]", b"{}")
"""Answers that are none of an API server's: of a proxy before it, or cut off."""
Kind = int | str | bytes
"""A fault: an HTTP status (0: nobody listens), `LOST`, or the content of an answer."""
LOST = "lost"
"""The call is carried out, and its answer does not arrive."""


class ApiServer:
    """Objects by path.

    Attributes:
        fault: called with the number and the request of each call, before it is carried out; returns the
            answer in its place, or None. May raise what an HTTP client raises.
        calls: method and path of all calls so far.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.fault: Fault = no_fault
        self.calls: list[tuple[str, str]] = []
        self._versions = itertools.count(1)
        transport = httpx.MockTransport(self._answer)
        self.client = Client(httpx.AsyncClient(transport=transport, base_url="https://cluster"))

    def put(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        """Store an object as a user would, or change it."""
        metadata = body["metadata"]
        path = resource.object_path(metadata.get("namespace", ""), metadata["name"])
        return self._store(path, body)

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        """Return an object as it is now."""
        return self.objects[resource.object_path(namespace, name)]

    def children(self) -> dict[str, str]:
        """Return what was applied, by path: the content without what the server adds."""
        made = {}
        for path, body in self.objects.items():
            if (body["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by"):
                content = {key: value for key, value in body.items() if key != "status"}
                metadata = {
                    key: value
                    for key, value in body["metadata"].items()
                    if key not in ("uid", "resourceVersion", "generation", "managedFields")
                }
                made[path] = json.dumps({**content, "metadata": metadata}, sort_keys=True)
        return made

    def _store(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        known = self.objects.get(path, {})
        version = next(self._versions)
        metadata = {
            **body["metadata"],
            "uid": known.get("metadata", {}).get("uid", f"uid-{version}"),
            "resourceVersion": str(version),
            "generation": version,
        }
        if "managedFields" in known.get("metadata", {}):
            metadata.setdefault("managedFields", known["metadata"]["managedFields"])
        stored = {**copy.deepcopy(body), "metadata": metadata}
        if "status" in known:
            stored.setdefault("status", known["status"])
        if path.split("/")[-2] in _WORKLOADS:
            stored["status"] = _ready(stored)
        self.objects[path] = stored
        return stored

    def fail(self, request: httpx.Request, kind: Kind) -> httpx.Response:
        """Answer with a fault."""
        if kind == LOST:
            self._carry_out(request)
            raise httpx.ReadError("canary lost")
        return httpx.Response(200, content=kind) if isinstance(kind, bytes) else answer_with(int(kind))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        number = len(self.calls)
        self.calls.append((request.method, request.url.path))
        broken = self.fault(number, request)
        return self._carry_out(request) if broken is None else broken

    def _carry_out(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method == "GET":
            return self._read(path, request.url.params.get("labelSelector"))
        if request.method == "DELETE":
            return _found(self.objects.pop(path, None))
        body = json.loads(request.content)
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            return answer_with(409) if path in self.objects else httpx.Response(201, json=self._store(path, body))
        if path.endswith("/status"):
            return self._write_status(path.removesuffix("/status"), body)
        if request.headers["Content-Type"] == "application/merge-patch+json":
            return self._merge(path, body, dry_run="dryRun" in request.url.params)
        return httpx.Response(200, json=self._store(path, body))

    def _read(self, path: str, selector: str | None) -> httpx.Response:
        if selector is None:
            return _found(self.objects.get(path))
        wanted = dict(pair.split("=", 1) for pair in selector.split(","))
        items = [
            body
            for place, body in self.objects.items()
            if path in _lists_of(place) and wanted.items() <= (body["metadata"].get("labels") or {}).items()
        ]
        return httpx.Response(200, json={"items": items, "metadata": {"resourceVersion": str(next(self._versions))}})

    def _merge(self, path: str, patch: dict[str, Any], *, dry_run: bool) -> httpx.Response:
        known = self.objects.get(path)
        if known is None or dry_run:
            return _found(known)
        return httpx.Response(200, json=self._store(path, merged(known, patch)))

    def _write_status(self, path: str, body: dict[str, Any]) -> httpx.Response:
        known = self.objects.get(path)
        if known is not None:
            known["status"] = body["status"]
        return _found(known)


def _lists_of(place: str) -> tuple[str, str]:
    """Return the paths of the lists that an object is in: of its namespace, and of all."""
    inside, _, _ = place.rpartition("/")
    root, separator, rest = inside.partition("/namespaces/")
    return inside, f"{root}/{rest.partition('/')[2]}" if separator else inside


def merged(body: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return an object with a JSON merge patch on top."""
    result = {key: value for key, value in body.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if isinstance(value, dict):
            result[key] = merged(body.get(key) or {}, value)
        elif value is not None:
            result[key] = value
    return result


def _found(body: dict[str, Any] | None) -> httpx.Response:
    return answer_with(404) if body is None else httpx.Response(200, json=body)


def _ready(body: dict[str, Any]) -> dict[str, Any]:
    replicas = body["spec"].get("replicas", 1)
    return {
        "observedGeneration": body["metadata"]["generation"],
        "readyReplicas": replicas,
        "updatedReplicas": replicas,
        "desiredNumberScheduled": 1,
        "numberReady": 1,
        "updatedNumberScheduled": 1,
    }
