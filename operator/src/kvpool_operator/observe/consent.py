"""Which namespaces say that they take a pool. A pool's author alone must not be able to write into another team's namespace."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvpool_operator.api.consent import ACCEPTS
from kvpool_operator.kube import NAMESPACE, Client, NotFound, Refused
from kvpool_operator.observe.gather import PoolKey

_FRESH = 0.9
"""Share of the time between two looks for which an answer is believed."""
_MOST_KNOWN = 10_000
"""Namespaces that are remembered. Pools may name any number that do not exist."""


class Consents:
    """Reads Namespaces, each at most once in a while. One event loop, no locks."""

    def __init__(self, client: Client, seconds: float, clock: Callable[[], float]) -> None:
        """Args:
        seconds: between two looks at the same namespace.
        """
        self._client = client
        self._seconds = seconds
        self._clock = clock
        self._known: dict[str, tuple[float, frozenset[str]]] = {}

    async def of(self, key: PoolKey, namespaces: Iterable[str]) -> tuple[str, ...]:
        """Return those of the namespaces that take the pool, in their order.

        Raises:
            ApiError: the API server did not answer. A namespace that is not there takes no pool, nor does one that the
                operator may not read, unless it could before: then it takes what it took.
        """
        return tuple([name for name in namespaces if "/".join(key) in await self._accepted(name)])

    async def _accepted(self, namespace: str) -> frozenset[str]:
        now = self._clock()
        known = self._known.get(namespace)
        if known is not None and now - known[0] < self._seconds * _FRESH:
            return known[1]
        try:
            body = await self._client.get(NAMESPACE, "", namespace)
        except NotFound:
            body = {"metadata": {}}
        except Refused:
            # A right that was taken from the operator is no consent that was taken back: copies that are there stay.
            return known[1] if known is not None else frozenset()
        text = (body["metadata"].get("annotations") or {}).get(ACCEPTS, "")
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        accepted = frozenset(pool.strip() for pool in text.split(","))
        self._known[namespace] = now, accepted
        return accepted
