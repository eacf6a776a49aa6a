"""Reads objects as ``kubectl get -o json`` does, without a process for each look.

Tests look at objects hundreds of times while they wait, and a kubectl takes a tenth of a second of a
core to start, which the API server and the operator lack meanwhile. What a test writes goes through
kubectl, as users have it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import httpx2 as httpx
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig

ATTEMPTS = 2
"""A connection that was kept open may have ended with the API server that a test stopped."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """Where the API server has the objects of one kind."""

    path: str
    """Such as ``/apis/apps/v1``."""
    plural: str
    namespaced: bool

    def objects(self, namespace: str, name: str = "") -> str:
        """Return the path of all objects of a namespace, or of one of them."""
        where = f"/namespaces/{namespace}" if self.namespaced else ""
        return f"{self.path}{where}/{self.plural}" + (f"/{name}" if name else "")


class Reader:
    """One cluster, one user."""

    def __init__(self, kubeconfig: str) -> None:
        config = KubeConfig.from_file(kubeconfig).get()
        assert config is not None, f"{kubeconfig} has no current context"
        self._http = Client(config, ConnectionParams(timeout=httpx.Timeout(30), trust_env=False))
        self._kinds: dict[str, Kind] = {}

    def get(self, namespace: str, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object, or None if there is none of this name."""
        return self._read(self._kind(kind).objects(namespace, name))

    def list(self, namespace: str, kinds: str, labels: str = "") -> list[dict[str, Any]]:
        """Return the objects of several kinds, each with its kind, as they come.

        Args:
            kinds: names as kubectl takes them, with commas between them.
            labels: a label selector.
        """
        found: list[dict[str, Any]] = []
        for kind in kinds.split(","):
            answer = self._read(self._kind(kind).objects(namespace), {"labelSelector": labels} if labels else {})
            assert answer is not None, f"the API server has no {kind}"
            head = {"apiVersion": answer["apiVersion"], "kind": answer["kind"].removesuffix("List")}
            found += [head | item for item in answer["items"]]
        return found

    def _read(self, path: str, parameters: dict[str, str] | None = None) -> dict[str, Any] | None:
        """Return what the API server says; None: not found.

        Raises:
            AssertionError: it refuses the request.
            httpx.TransportError: it does not answer.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = self._http.get(path, params=parameters or {})
                break
            except httpx.TransportError:
                if attempt == ATTEMPTS:
                    raise
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        assert response.is_success, f"GET {path}: {response.status_code} {response.text}"
        body: dict[str, Any] = response.json()
        return body

    def _kind(self, name: str) -> Kind:
        """Return a kind by a name that kubectl takes: plural, singular, short, or with its group.

        A kind that came after the last look, such as that of a new definition, is looked for again.
        """
        if name.lower() not in self._kinds:
            self._kinds = self._discover()
        return self._kinds[name.lower()]

    def _discover(self) -> dict[str, Kind]:
        """Return all kinds by their names.

        Where several groups or versions have a name, the first one keeps it: the core group, and of
        a group its preferred version.
        """
        groups = self._read("/apis")
        assert groups is not None
        versions = [each["groupVersion"] for group in groups["groups"] for each in group["versions"]]
        kinds: dict[str, Kind] = {}
        for path, group in [("/api/v1", ""), *((f"/apis/{each}", each.partition("/")[0]) for each in versions)]:
            for resource in (self._read(path) or {"resources": []})["resources"]:
                plural = resource["name"]
                if "/" in plural:  # a subresource
                    continue
                kind = Kind(path, plural, resource["namespaced"])
                names = [plural, resource["singularName"], resource["kind"].lower(), *resource.get("shortNames", ())]
                for name in [*names, f"{plural}.{group}"]:
                    kinds.setdefault(name, kind)
        return kinds


@functools.cache
def reader(kubeconfig: str) -> Reader:
    """Return the reader of a kubeconfig, which all tests of a process share."""
    return Reader(kubeconfig)
