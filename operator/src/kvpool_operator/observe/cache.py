"""Children as the watches last showed them.

Events and our own writes arrive in any order; an object's resourceVersion says which is newer. One event loop, no locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from kvpool_operator.desired.names import POOL_LABEL, POOL_NAMESPACE_LABEL, POOL_UID_LABEL
from kvpool_operator.desired.scaling import other_scalers

Key = tuple[str, str, str]
"""Kind, namespace, name."""
PoolKey = tuple[str, str]
"""Namespace and name of a pool."""
_MOST_GONE = 10_000
"""Deleted objects that are remembered."""


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
    """The newest known version of every child, found by name and by pool."""

    def __init__(self) -> None:
        self._objects: dict[Key, dict[str, Any]] = {}
        self._of_pool: dict[PoolKey, dict[Key, None]] = {}
        """Keys of the objects of each pool, in the order in which they came."""
        self._gone: dict[Key, tuple[int, PoolKey | None]] = {}
        """Deleted objects: version and pool. Our own write's answer may arrive after the news of the deletion."""

    def put(self, body: Mapping[str, Any]) -> bool:
        """Take over an object unless a newer version is known; returns whether it was news."""
        key = key_of(body)
        version = _version(body)
        known = self._objects.get(key)
        if version <= self._gone.get(key, (-1, None))[0] or (known is not None and version <= _version(known)):
            return False
        # managedFields are half of an object. What is read of them is who else scales it.
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        scalers = other_scalers(body)
        if scalers:
            metadata["managedFields"] = scalers
        self._remove(key)
        self._objects[key] = {**body, "metadata": metadata}
        pool = pool_of(body)
        if pool is not None:
            self._of_pool.setdefault(pool, {})[key] = None
        self._gone.pop(key, None)
        return True

    def drop(self, body: Mapping[str, Any]) -> None:
        """The object was deleted, at the version that the event carries."""
        key = key_of(body)
        version = _version(body)
        known = self._objects.get(key)
        if known is not None and _version(known) > version:
            return  # a namesake was made since
        self._remove(key)
        if len(self._gone) >= _MOST_GONE:
            self._gone.clear()
        self._gone[key] = version, pool_of(body)

    def replace(self, namespace: str, pool: str, bodies: Iterable[Mapping[str, Any]]) -> None:
        """Children of one pool as lists of its namespace and of its copies' showed them: what is not there is gone."""
        listed = list(bodies)
        present = {key_of(body) for body in listed}
        for key in [key for key in self._of_pool.get((namespace, pool), ()) if key not in present]:
            self._remove(key)
        for body in listed:
            self.put(body)

    def retain(self, kind: str, namespace: str, listed: Set[tuple[str, str]], *, version: int) -> None:
        """Forget the objects of a kind that a list of all of them did not show, unless they are newer than that list.

        Args:
            namespace: in which the list was; empty: all.
            listed: namespaces and names of what it showed.
            version: of the list.
        """
        gone = [
            key
            for key, body in self._objects.items()
            if key[0] == kind and namespace in ("", key[1]) and key[1:] not in listed and _version(body) <= version
        ]
        for key in gone:
            self._remove(key)

    def forget(self, namespace: str, pool: str) -> None:
        """The pool is gone; so are its children, soon."""
        self.replace(namespace, pool, ())
        for key in [key for key, (_, owner) in self._gone.items() if owner == (namespace, pool)]:
            del self._gone[key]

    def get(self, key: Key) -> Mapping[str, Any] | None:
        return self._objects.get(key)

    def children(self, namespace: str, pool: str) -> tuple[Mapping[str, Any], ...]:
        """Return all objects of a pool. This takes as long as there are objects of this pool."""
        return tuple(self._objects[key] for key in self._of_pool.get((namespace, pool), ()))

    def pools(self) -> tuple[PoolKey, ...]:
        """Return the pools of which there is an object, whether they are there themselves or not."""
        return tuple(self._of_pool)

    def _remove(self, key: Key) -> None:
        """Forget an object, if it is known."""
        body = self._objects.pop(key, None)
        pool = pool_of(body) if body is not None else None
        if pool is None:
            return
        keys = self._of_pool[pool]
        del keys[key]
        if not keys:
            del self._of_pool[pool]


def _version(body: Mapping[str, Any]) -> int:
    """Comparable since Kubernetes 1.35 by contract, and in every server before by practice."""
    return int(body["metadata"]["resourceVersion"])
