"""Which pool the object names that Pods belong to, where its controller copies no annotation to them.

KubeRay copies a RayService's annotations to its RayCluster, but not to Pods. KServe copies an LLMInferenceService's
``spec.annotations`` to Pods, but of its own annotations a few prefixes only (``propagateDeploymentMetadata`` in
``pkg/controller/v1alpha2/llmisvc/workload_single_node.go``, 0.17).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from kvpool_operator.injection import names
from kvpool_operator.injection.names import Parent
from kvpool_operator.kube import LLM_SERVICES, RAY_CLUSTER, ApiError, Client, NotFound, Refused, Resource

_PATIENCE = 1.0
_KEPT_SECONDS = 10.0
"""All Pods of an object are made in a burst: one read serves them all."""
_RESOURCES: Mapping[str, tuple[Resource, ...]] = {names.RAY_CLUSTER_KIND: (RAY_CLUSTER,), names.LLM_KIND: LLM_SERVICES}
"""Where each kind is looked for, in this order."""


class Parents:
    """A read-through cache of one annotation. One event loop, no locks."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[tuple[str, Parent], tuple[float, str | None]] = {}
        self._asking: dict[tuple[str, Parent], asyncio.Task[str | None]] = {}

    async def pool(self, namespace: str, parent: Parent) -> str | None:
        """Return the annotation's value, or None if there is none or the operator may not look.

        Raises:
            ApiError: the API server did not answer in time. Nothing is remembered of it.
        """
        key = namespace, parent
        since, value = self._known.get(key, (float("-inf"), None))
        if self._clock() - since < _KEPT_SECONDS:
            return value
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(namespace, parent))
            task.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(task)

    def _asked(self, key: tuple[str, Parent], task: asyncio.Task[str | None]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # asyncio would complain of one that nobody waits for any more

    async def _ask(self, namespace: str, parent: Parent) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                value = await self._read(namespace, parent)
        except Refused:
            value = None
        except TimeoutError:
            message = f"no answer about {parent.kind} {parent.name} within {_PATIENCE:g} s"
            raise ApiError(status=0, message=message) from None
        now = self._clock()
        self._known = {old: entry for old, entry in self._known.items() if now - entry[0] < _KEPT_SECONDS}
        self._known[namespace, parent] = now, value
        return value

    async def _read(self, namespace: str, parent: Parent) -> str | None:
        for resource in _RESOURCES[parent.kind]:
            try:
                body = await self._client.get(resource, namespace, parent.name)
            except NotFound:  # the object, or this version of its kind
                continue
            return names.annotations_of(body).get(names.POOL)
        return None
