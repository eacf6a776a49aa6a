"""Lists of all children, one for each kind and all pools together, now and then.

Watches tell of every change but for those that they miss: after one broke off and its place in the
history is gone, kopf lists again, and says nothing of objects that were deleted meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from kvpool_operator.desired.names import MANAGED_BY, MANAGED_BY_LABEL
from kvpool_operator.kube import CHILD_KINDS, Client, Resource
from kvpool_operator.observe.cache import Cache

_MANAGED: Mapping[str, str] = {MANAGED_BY_LABEL: MANAGED_BY}


class Relists:
    """Keeps a cache true. Reads alone. One event loop."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        namespaces: tuple[str, ...],
        *,
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """Take where to look.

        Args:
            namespaces: that are served; empty: all, by one list.
            seconds: between two lists.
        """
        self._client = client
        self._cache = cache
        self._namespaces = namespaces
        self._seconds = seconds
        self._clock = clock
        self._listed: dict[str, float] = {}
        self._listing: dict[str, asyncio.Task[None]] = {}

    def covers(self, namespace: str) -> bool:
        """Return whether children in a namespace are among those that are listed."""
        return not self._namespaces or namespace in self._namespaces

    async def refresh(self, namespace: str) -> None:
        """List the children in a namespace when nobody did for a while. All who ask meanwhile wait for one list.

        Raises:
            ApiError: the API server did not answer, or does not let the operator look there.
        """
        scope = self._scope(namespace)
        if self._clock() - self._listed.get(scope, float("-inf")) < self._seconds:
            return
        task = self._listing.get(scope)
        if task is None:
            task = self._listing[scope] = asyncio.create_task(self._list(scope))
            task.add_done_callback(lambda done: self._ended(scope, done))
        await asyncio.shield(task)

    def _scope(self, namespace: str) -> str:
        return namespace if self._namespaces else ""

    def _ended(self, scope: str, task: asyncio.Task[None]) -> None:
        self._listing.pop(scope, None)
        if not task.cancelled():
            task.exception()  # asyncio would complain of one that nobody waits for any more

    async def _list(self, scope: str) -> None:
        began = self._clock()
        await asyncio.gather(*(self._list_kind(kind, scope) for kind in CHILD_KINDS))
        self._listed[scope] = began

    async def _list_kind(self, kind: Resource, scope: str) -> None:
        listed: set[tuple[str, str]] = set()
        version = "0"
        async for page in self._client.pages(kind, scope, labels=_MANAGED):
            version = page.version
            for body in page.items:
                self._cache.put(body)
                listed.add((body["metadata"]["namespace"], body["metadata"]["name"]))
        self._cache.retain(kind.kind, scope, listed, version=int(version))
