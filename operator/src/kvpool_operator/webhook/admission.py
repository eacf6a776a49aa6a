"""From an admission request to an outcome: bring what is known of the pool, let ``injection`` decide.

Reads caches. Only what no watch has shown yet is asked for, briefly; a pool that was made a moment ago is waited for, so that
a pool and a Deployment can be applied together. Whatever goes wrong, the object passes as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from kvpool_operator.api import Settings
from kvpool_operator.injection import facts, names, pod
from kvpool_operator.injection.facts import Facts
from kvpool_operator.injection.names import BadReference, PoolKey
from kvpool_operator.injection.outcome import Outcome, Skip, Why
from kvpool_operator.kube import ApiError
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.parents import Parents
from kvpool_operator.observe.pools import Pools

_log = logging.getLogger(__name__)
_PATIENCE = 2.0
"""Seconds for a new pool's ConfigMap and Secrets, and for an API server that is slow; the API server waits longer."""
_PAUSE = 0.05
_PASSING = frozenset({Why.POOL_NOT_READY, Why.NO_ANSWER})
"""Reasons that may hold no longer a moment later."""


def _fault(request: Mapping[str, Any]) -> Skip:
    """Log the exception that is being handled. Return the reason for the Pod, so that its owner reads of it."""
    _log.exception("webhook: a fault of the operator at Pod %s/%s", request.get("namespace"), request.get("name"))
    return Skip(Why.FAULT, "a fault of the operator kept it from reading this Pod: see the operator's log")


class Admission:
    """All decisions. One event loop."""

    def __init__(self, pools: Pools, cache: Cache, parents: Parents, settings: Settings) -> None:
        self._pools = pools
        self._cache = cache
        self._parents = parents
        self._settings = settings

    async def pod(self, request: Mapping[str, Any]) -> Outcome | None:
        """For a Pod; None where it names no pool."""
        body, namespace = request["object"], str(request.get("namespace", ""))
        reference = names.annotations_of(body).get(names.POOL)
        parent = names.parent(body)
        if reference is None and parent is not None:
            try:
                reference = await self._parents.pool(namespace, parent)
            except ApiError as error:
                # It may be none of kvpool's business. If it is, the list of all Pods finds it later.
                _log.warning("webhook: a Pod of %s passes as it is: %s", parent.name, error.message)
        if not reference:
            return None
        try:
            key = names.pool_key(reference, namespace)
        except BadReference as error:
            return pod.skipped(body, None, Skip(Why.BAD_REFERENCE, str(error)))
        try:
            known = await self._facts(key, namespace)
            return pod.inject(body, known)
        except Skip as reason:
            return pod.skipped(body, key, reason)
        except Exception:
            return pod.skipped(body, key, _fault(request))

    async def _facts(self, key: PoolKey, namespace: str) -> Facts:
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            try:
                body = await self._body(key)
                return facts.gather(key, body, namespace, self._settings, self._is_there)
            except Skip as reason:
                late = asyncio.get_running_loop().time() + _PAUSE > deadline
                if reason.why not in _PASSING or late:
                    raise
            await asyncio.sleep(_PAUSE)

    async def _body(self, key: PoolKey) -> Mapping[str, Any] | None:
        """Return the pool, or None if there is none.

        Raises:
            Skip: whether there is one could not be found out.
        """
        try:
            return await self._pools.get(key)
        except ApiError as error:
            raise Skip(
                Why.NO_ANSWER,
                f"the API server did not say whether there is a pool {'/'.join(key)} ({error.message}): restart the Pod",
            ) from None

    def _is_there(self, kind: str, namespace: str, name: str) -> bool:
        found = self._cache.get((kind, namespace, name))
        return found is not None and "deletionTimestamp" not in found["metadata"]
