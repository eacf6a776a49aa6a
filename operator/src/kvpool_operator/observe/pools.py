"""Pools as the watch last showed them, for whoever must answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvpool_operator.kube import POOL, ApiError, Client, NotFound
from kvpool_operator.observe.gather import PoolKey

_PATIENCE = 1.0
_ABSENT_SECONDS = 1.0
"""A pool that was not there is asked for again after this."""

_MOST_GONE = 10_000
"""Deleted pools that are remembered."""


class Pools:
    """The newest known version of every pool. One event loop, no locks."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._bodies: dict[PoolKey, Mapping[str, Any]] = {}
        self._absent: dict[PoolKey, float] = {}
        self._gone: dict[PoolKey, int] = {}
        """Versions at which pools were deleted: an answer to a question that was asked before may come after that."""

    def keys(self) -> Iterable[PoolKey]:
        """Return namespace and name of each pool that is known."""
        return tuple(self._bodies)

    def put(self, body: Mapping[str, Any]) -> None:
        """Take over a pool that a watch or a list showed."""
        self._take(_key(body), body)

    def _take(self, key: PoolKey, body: Mapping[str, Any]) -> None:
        if _version(body) <= self._gone.get(key, -1):
            return
        self._gone.pop(key, None)
        known = self._bodies.get(key)
        if known is None or _version(known) <= _version(body):
            self._bodies[key] = body
        self._absent.pop(key, None)

    def drop(self, body: Mapping[str, Any]) -> None:
        """Forget a pool that a watch showed as deleted."""
        key = _key(body)
        known = self._bodies.get(key)
        if known is None or _version(known) <= _version(body):
            self._bodies.pop(key, None)
            if len(self._gone) >= _MOST_GONE:
                self._gone.clear()
            self._gone[key] = _version(body)

    async def get(self, key: PoolKey) -> Mapping[str, Any] | None:
        """Return the pool, or None if the API server says that there is none.

        One that the watch has not shown may have been made a moment ago, so it is asked for, briefly.

        Raises:
            ApiError: the API server did not say in time whether there is one. Nothing is remembered.
        """
        known = self._bodies.get(key)
        if known is not None or self._clock() - self._absent.get(key, float("-inf")) < _ABSENT_SECONDS:
            return known
        try:
            async with asyncio.timeout(_PATIENCE):
                body = await self._client.get(POOL, *key)
        except NotFound:
            self._absent = {
                old: since for old, since in self._absent.items() if self._clock() - since < _ABSENT_SECONDS
            }
            self._absent[key] = self._clock()
            return None
        except TimeoutError:
            raise ApiError(status=0, message=f"no answer about a pool within {_PATIENCE:g} s") from None
        self._take(key, body)
        return self._bodies.get(key)


def _key(body: Mapping[str, Any]) -> PoolKey:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _version(body: Mapping[str, Any]) -> int:
    return int(body["metadata"]["resourceVersion"])
