"""Pools as the watch last showed them, for whoever must answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from kvpool_operator.kube import POOL, ApiError, Client, NotFound
from kvpool_operator.observe.gather import PoolKey

_PATIENCE = 1.0
_ABSENT_SECONDS = 1.0
"""A pool that was not there is asked for again after this."""


class Pools:
    """The newest known version of every pool. One event loop, no locks."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._bodies: dict[PoolKey, Mapping[str, Any]] = {}
        self._absent: dict[PoolKey, float] = {}

    def put(self, body: Mapping[str, Any]) -> None:
        key = _key(body)
        known = self._bodies.get(key)
        if known is None or _version(known) <= _version(body):
            self._bodies[key] = body
        self._absent.pop(key, None)

    def drop(self, body: Mapping[str, Any]) -> None:
        known = self._bodies.get(_key(body))
        if known is not None and _version(known) <= _version(body):
            del self._bodies[_key(body)]

    async def get(self, key: PoolKey) -> Mapping[str, Any] | None:
        """The pool. One that the watch hasn't shown may have been made a moment ago, so it is asked for, briefly."""
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
        except (ApiError, TimeoutError):
            return None
        self.put(body)
        return body


def _key(body: Mapping[str, Any]) -> PoolKey:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _version(body: Mapping[str, Any]) -> int:
    return int(body["metadata"]["resourceVersion"])
