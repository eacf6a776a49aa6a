"""Children as the watches last showed them.

Events and our own writes arrive in any order; an object's resourceVersion says which is newer. One event loop, no locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kvpool_operator.desired.names import POOL_LABEL, POOL_NAMESPACE_LABEL, POOL_UID_LABEL
from kvpool_operator.desired.scaling import other_scalers

Key = tuple[str, str, str]
"""Kind, namespace, name."""


def key_of(body: Mapping[str, Any]) -> Key:
    metadata = body["metadata"]
    return body["kind"], metadata["namespace"], metadata["name"]


def owner_uid(body: Mapping[str, Any]) -> str | None:
    """The uid of the object that controls this one; of a copy in another namespace, of its pool."""
    for owner in body["metadata"].get("ownerReferences", ()):
        if owner.get("controller"):
            return str(owner["uid"])
    uid: str | None = body["metadata"].get("labels", {}).get(POOL_UID_LABEL)
    return uid


def pool_of(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Namespace and name of the pool whose child this is."""
    metadata = body["metadata"]
    labels = metadata.get("labels", {})
    name = labels.get(POOL_LABEL)
    return (labels.get(POOL_NAMESPACE_LABEL, metadata["namespace"]), name) if name else None


def is_copy(body: Mapping[str, Any]) -> bool:
    """Whether it is a copy for another namespace; its name belongs to one pool's name, whatever the pool's uid."""
    return POOL_UID_LABEL in body["metadata"].get("labels", {})


def is_going(body: Mapping[str, Any]) -> bool:
    """Return whether the object is being deleted."""
    return "deletionTimestamp" in body["metadata"]


class Cache:
    """The newest known version of every child."""

    def __init__(self) -> None:
        self._objects: dict[Key, dict[str, Any]] = {}
        self._gone: dict[Key, tuple[int, tuple[str, str] | None]] = {}
        """Deleted objects: version and pool. Our own write's answer may arrive after the news of the deletion."""

    def put(self, body: Mapping[str, Any]) -> bool:
        """Take over an object unless a newer version is known; returns whether it was news."""
        key, version = key_of(body), _version(body)
        known = self._objects.get(key)
        if version <= self._gone.get(key, (-1, None))[0] or (known is not None and version <= _version(known)):
            return False
        # managedFields are half of an object. What is read of them is who else scales it.
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        scalers = other_scalers(body)
        if scalers:
            metadata["managedFields"] = scalers
        self._objects[key] = {**body, "metadata": metadata}
        self._gone.pop(key, None)
        return True

    def drop(self, body: Mapping[str, Any]) -> None:
        """The object was deleted, at the version that the event carries."""
        key, version = key_of(body), _version(body)
        known = self._objects.get(key)
        if known is not None and _version(known) > version:
            return  # a namesake was made since
        self._objects.pop(key, None)
        self._gone[key] = version, pool_of(body)

    def replace(self, namespace: str, pool: str, bodies: Iterable[Mapping[str, Any]]) -> None:
        """Children of one pool as lists of its namespace and of its copies' showed them: what is not there is gone."""
        listed = list(bodies)
        present = {key_of(body) for body in listed}
        for key in [key for key, body in self._objects.items() if _is_of(body, namespace, pool)]:
            if key not in present:
                del self._objects[key]
        for body in listed:
            self.put(body)

    def forget(self, namespace: str, pool: str) -> None:
        """The pool is gone; so are its children, soon."""
        self.replace(namespace, pool, ())
        for key in [key for key, (_, owner) in self._gone.items() if owner == (namespace, pool)]:
            del self._gone[key]

    def get(self, key: Key) -> Mapping[str, Any] | None:
        return self._objects.get(key)

    def children(self, namespace: str, pool: str) -> tuple[Mapping[str, Any], ...]:
        return tuple(body for body in self._objects.values() if _is_of(body, namespace, pool))


def _is_of(body: Mapping[str, Any], namespace: str, pool: str) -> bool:
    return pool_of(body) == (namespace, pool)


def _version(body: Mapping[str, Any]) -> int:
    """Comparable since Kubernetes 1.35 by contract, and in every server before by practice."""
    return int(body["metadata"]["resourceVersion"])
