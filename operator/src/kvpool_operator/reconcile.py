"""One pool from what it is to what it should be: observe, desired, apply, status. Level-based: it never asks what changed.

Knows nothing of kopf. Whoever calls it sees to it that one pool is in hand once at a time.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from kvpool_connector.config import ConfigError
from kvpool_operator.api import InvalidSpec, Settings, parse_spec
from kvpool_operator.apply.children import Children
from kvpool_operator.apply.events import record
from kvpool_operator.apply.secrets import SecretValues
from kvpool_operator.apply.status import write_status
from kvpool_operator.desired import Material, Pool, desired
from kvpool_operator.kube import Client
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.gather import Observer, PoolKey
from kvpool_operator.status import events
from kvpool_operator.status.fold import build_status
from kvpool_operator.status.observed import Consumer, Observed

_log = logging.getLogger(__name__)


def _utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _granted(body: Mapping[str, Any]) -> list[str]:
    """Namespaces that the pool's Pods' configuration is copied to; nothing is checked yet, so nothing is relied on."""
    injection = body.get("spec", {}).get("injection")
    named = injection.get("allowedNamespaces") if isinstance(injection, Mapping) else None
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


class Reconciler:
    """Holds what outlives one reconciliation: the client and the caches."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        settings: Settings,
        *,
        clock: Callable[[], float],
        consumers_of: Callable[[PoolKey], tuple[Consumer, ...]],
        now: Callable[[], str] = _utc_now,
    ) -> None:
        self._client = client
        self._settings = settings
        self._now = now
        self._observer = Observer(client, cache, settings, clock, consumers_of)
        self._children = Children(client, cache)
        self._secrets = SecretValues(client, cache)

    async def reconcile(self, key: PoolKey) -> float | None:
        """Do what is needed now.

        Returns:
            Seconds after which to look again although nothing was seen to change; None: never.

        Raises:
            ApiError: the API server can't be reached; nothing is lost by trying again.
        """
        body = await self._observer.pool(key)
        if body is None:
            await self._children.delete_copies(self._observer.children(key))
        if body is None or "deletionTimestamp" in body["metadata"]:
            # Children go by their owner references. Touching them now could only bring them back.
            self._observer.forget(key)
            return None
        await self._observer.refresh_children(key, _granted(body))
        try:
            spec = parse_spec(body.get("spec", {}))
        except InvalidSpec as error:
            seen = Observed(generation=body["metadata"]["generation"], pool=None, invalid=str(error))
        else:
            seen = await self._bring_about(key, body, spec)
        status = build_status(seen, body.get("status", {}), self._now())
        if await write_status(self._client, body, status):
            ready = status["conditions"][0]
            _log.info("%s/%s: Ready=%s %s: %s", *key, ready["status"], ready["reason"], ready["message"])
            for event in events.of(seen, body.get("status", {}), status):
                await record(self._client, body, event)
        return self._next_look(seen, status)

    async def _bring_about(self, key: PoolKey, body: Mapping[str, Any], spec: Any) -> Observed:
        metadata = body["metadata"]
        probe, (username, sentinel_username) = await self._observer.store_probe(key, spec)
        material = Material(
            store_password="", hash_seed="", external_username=username, sentinel_username=sentinel_username
        )
        pool = Pool(metadata["name"], metadata["namespace"], metadata["uid"], spec, material, self._settings)
        pool = await self._secrets.fill(pool, create=not spec.paused)
        seen = Observed(generation=metadata["generation"], pool=pool, probe=probe)
        if not spec.paused:
            seen = await self._apply(key, pool, seen)
        return await self._observer.look(pool, seen)

    async def _apply(self, key: PoolKey, pool: Pool, seen: Observed) -> Observed:
        try:
            manifests = desired(pool)
        except ConfigError as error:
            return dataclasses.replace(seen, invalid_config=str(error))
        refusals = await self._children.apply(manifests, owner=pool.uid)
        await self._children.prune(self._observer.children(key), manifests, owner=pool.uid)
        return dataclasses.replace(seen, refusals=refusals)

    def _next_look(self, seen: Observed, status: Mapping[str, Any]) -> float:
        """Watches tell of children. External stores, Pods and refusals have no watch, so they are looked at."""
        is_ready = status["conditions"][0]["status"] == "True"
        unwatched = seen.probe is not None or not is_ready
        return self._settings.probe_seconds if unwatched else self._settings.resync_seconds
