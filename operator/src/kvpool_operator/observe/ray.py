"""Which pool a RayCluster names. KubeRay copies a RayService's annotations to its RayCluster, but not to Pods."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvpool_operator.injection import names
from kvpool_operator.kube import RAY_CLUSTER, ApiError, Client

_PATIENCE = 1.0
_KEPT_SECONDS = 10.0
"""All Pods of a cluster are made in a burst: one read serves them all."""


class RayClusters:
    """A read-through cache of one annotation. One event loop, no locks."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[float, str | None]] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[str | None]] = {}

    async def pool(self, namespace: str, cluster: str) -> str | None:
        """The annotation's value. None: there is none, or the API server did not answer in time."""
        key = namespace, cluster
        since, value = self._known.get(key, (float("-inf"), None))
        if self._clock() - since < _KEPT_SECONDS:
            return value
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(namespace, cluster))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def _ask(self, namespace: str, cluster: str) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                body = await self._client.get(RAY_CLUSTER, namespace, cluster)
        except (ApiError, TimeoutError):
            value = None
        else:
            value = names.annotations_of(body).get(names.POOL)
        now = self._clock()
        self._known = {old: entry for old, entry in self._known.items() if now - entry[0] < _KEPT_SECONDS}
        self._known[namespace, cluster] = now, value
        return value
