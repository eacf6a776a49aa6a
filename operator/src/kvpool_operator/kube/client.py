"""A small asynchronous client over dicts: paths and verbs. ``access`` makes one.

Every request is counted by verb, so that tests can state how many writes a quiet cluster sees.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from kvpool_operator.desired.names import FIELD_MANAGER
from kvpool_operator.kube.errors import ApiError, Conflict, NotFound, Refused
from kvpool_operator.kube.fence import Fence
from kvpool_operator.kube.resources import NotAName, Resource

TIMEOUT = httpx.Timeout(10)
"""Seconds for each step of a request."""
_PAGE = 500
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


_ERRORS = {404: NotFound, 409: Conflict, 400: Refused, 403: Refused, 422: Refused}


@dataclass(frozen=True)
class Page:
    """A part of a list. All pages of a list show the same moment, that of ``version``."""

    items: list[dict[str, Any]]
    version: str


class Client:
    """Reads and writes namespaced objects as dicts.

    Safe for concurrent use within one event loop.
    """

    def __init__(self, http: httpx.AsyncClient, fence: Fence | None = None) -> None:
        """Take the HTTP client, and what holds back writes; None: nothing does."""
        self._http = http
        self._fence = fence
        self.requests: collections.Counter[str] = collections.Counter()

    @property
    def hosts(self) -> tuple[str, ...]:
        """By which the API server is reached: from here, and from Pods."""
        service = os.environ.get("KUBERNETES_SERVICE_HOST")
        return tuple(filter(None, (self._http.base_url.host, service)))

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        """Return an object.

        Raises:
            NotFound: there is none. A name that no object can have is not sent to the API server.
        """
        try:
            path = resource.object_path(namespace, name)
        except NotAName as error:
            raise NotFound(status=404, message=str(error)) from None
        return await self._ask("GET", path)

    async def list(
        self,
        resource: Resource,
        namespace: str,
        *,
        labels: Mapping[str, str],
        cached: bool = False,
    ) -> list[dict[str, Any]]:
        """Objects with all of the labels; an empty namespace means all.

        Args:
            cached: the API server may answer from its memory, a moment behind.
        """
        pages = self.pages(resource, namespace, labels=labels, cached=cached)
        return [item async for page in pages for item in page.items]

    async def pages(
        self,
        resource: Resource,
        namespace: str,
        *,
        labels: Mapping[str, str],
        cached: bool = False,
        metadata_only: bool = False,
    ) -> AsyncIterator[Page]:
        """Yield objects as ``list`` returns them, some hundred at a time, so that nobody has to hold all of them.

        Args:
            metadata_only: objects come without spec and status.
        """
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        params = {"labelSelector": selector, **({"resourceVersion": "0"} if cached else {"limit": str(_PAGE)})}
        headers = {"Accept": _METADATA} if metadata_only else None
        # Items of a list carry no kind of their own, or that of bare metadata; no items may be null.
        head = {"apiVersion": resource.api_version, "kind": resource.kind}
        while True:
            found = await self._ask("GET", _list_path(resource, namespace), params=params, headers=headers)
            metadata = found["metadata"]
            yield Page(
                [{**item, **head} for item in found.get("items") or ()],
                str(metadata.get("resourceVersion") or "0"),
            )
            token = metadata.get("continue")
            if not token:
                return
            params["continue"] = token

    async def apply(self, resource: Resource, manifest: Mapping[str, Any], *, subresource: str = "") -> dict[str, Any]:
        """Server-side apply: own exactly the fields of the manifest, and return the object as it now is."""
        metadata = manifest["metadata"]
        return await self._ask(
            "PATCH",
            _object_path(resource, metadata["namespace"], metadata["name"], subresource),
            params={"fieldManager": FIELD_MANAGER, "force": "true"},
            content=json.dumps(manifest),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )

    async def create(self, resource: Resource, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Create, or fail with Conflict: never a change to what is there."""
        return await self._ask(
            "POST",
            _list_path(resource, manifest["metadata"]["namespace"]),
            params={"fieldManager": FIELD_MANAGER},
            content=json.dumps(manifest),
        )

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, Any],
        *,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Change fields of an object that is there (JSON merge patch).

        With the object's resourceVersion in the patch, a change since then is a Conflict.

        Args:
            dry_run: only hear whether the API server would carry it out.
        """
        dry = {"dryRun": "All"} if dry_run else {}
        return await self._ask(
            "PATCH",
            _object_path(resource, namespace, name),
            params={"fieldManager": FIELD_MANAGER, **dry},
            content=json.dumps(patch),
            headers={"Content-Type": "application/merge-patch+json"},
        )

    async def patch(
        self, resource: Resource, namespace: str, name: str, operations: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Change an object that is there (JSON patch): all operations or none."""
        return await self._ask(
            "PATCH",
            _object_path(resource, namespace, name),
            params={"fieldManager": FIELD_MANAGER},
            content=json.dumps(operations),
            headers={"Content-Type": "application/json-patch+json"},
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str,
        orphan: bool = False,
    ) -> None:
        """Delete this very object, and not a namesake that came after it.

        Args:
            orphan: leave what it owns, such as a StatefulSet's Pods.
        """
        propagation = "Orphan" if orphan else "Background"
        body = {"preconditions": {"uid": uid}, "propagationPolicy": propagation}
        await self._ask("DELETE", _object_path(resource, namespace, name), content=json.dumps(body))

    async def served(self, api_version: str, plural: str) -> bool:
        """Whether the API server knows a resource. Needs no permission beyond discovery."""
        try:
            found = await self._send("GET", f"/apis/{api_version}")
        except NotFound:
            return False
        return any(entry["name"] == plural for entry in found.get("resources", []))

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send a request about objects. Its answer is an object, a list or a status, and each of them has metadata."""
        answer = await self._send(method, path, params=params, content=content, headers=headers)
        if not isinstance(answer.get("metadata"), dict):
            raise _no_answer(method, path)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        guard = self._fence if method != "GET" else None
        if guard is not None:
            guard.check()
        self.requests[method] += 1
        try:
            response = await self._http.request(
                method,
                path,
                params=params,
                content=content,
                headers=headers or {"Content-Type": "application/json"},
                timeout=TIMEOUT,
                extensions={"trace": guard.at_sending} if guard is not None else None,
            )
        except httpx.HTTPError as error:
            raise ApiError(status=0, message=f"{method} {path}: {type(error).__name__}: {error}") from None
        if not response.is_success:
            raise _error(method, path, response)
        answer = _object(response)
        if answer is None:
            raise _no_answer(method, path)
        return answer


def _no_answer(method: str, path: str) -> ApiError:
    """Return what an answer means that is no API server's, but a proxy's or a load balancer's in front of it."""
    return ApiError(status=0, message=f"{method} {path}: the answer is no object of an API server")


def _object(response: httpx.Response) -> dict[str, Any] | None:
    """Return the JSON object that an answer holds; None where it holds something else."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _list_path(resource: Resource, namespace: str) -> str:
    try:
        return resource.list_path(namespace)
    except NotAName as error:
        raise Refused(status=422, message=str(error)) from None


def _object_path(resource: Resource, namespace: str, name: str, subresource: str = "") -> str:
    try:
        return resource.object_path(namespace, name, subresource)
    except NotAName as error:
        raise Refused(status=422, message=str(error)) from None


def _error(method: str, path: str, response: httpx.Response) -> ApiError:
    """The API server's message, without the request's body: it may hold a Secret."""
    message = str((_object(response) or {}).get("message", ""))
    status = response.status_code
    if status == 500 and "failed to create typed patch object" in message:
        # A manifest with a field that the kind does not have (from a user's Pod template): it will never be accepted.
        return Refused(status=status, message=message)
    kind = _ERRORS.get(status, ApiError)
    return kind(status=status, message=message or f"{method} {path}: HTTP {status}")
