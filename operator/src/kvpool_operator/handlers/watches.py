"""kopf as informer: watches that fill the cache and the queue. Handlers act on nothing and write nothing, so no finalizer,
no annotation and no event of kopf's ever reaches an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from kvpool_operator.api import GROUP, PLURAL, VERSION
from kvpool_operator.desired.names import MANAGED_BY, MANAGED_BY_LABEL, POOL_LABEL
from kvpool_operator.kube import CHILD_KINDS
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.gather import PoolKey


def registry(cache: Cache, add: Callable[[PoolKey], None]) -> kopf.OperatorRegistry:
    """All handlers, bound to this cache and queue."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # Kubeconfig first, as in the client of our own writes: both must talk to the same cluster.
        return kopf.login_with_kubeconfig(**kwargs) or kopf.login_with_service_account(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def pool_changed(namespace: str | None, name: str | None, **_: Any) -> None:
        add((str(namespace), str(name)))

    async def child_changed(event: kopf.RawEvent, **_: Any) -> None:
        body: dict[str, Any] = dict(event["object"])
        if event["type"] == "DELETED":
            cache.drop(body)
        elif not cache.put(body):
            return  # the echo of a write of ours
        metadata = body["metadata"]
        pool = metadata.get("labels", {}).get(POOL_LABEL)
        if pool:
            add((metadata["namespace"], pool))

    for kind in CHILD_KINDS:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=handlers)(child_changed)
    return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """kopf without anything that writes or that needs rights beyond list and watch."""
    configured = kopf.OperatorSettings()
    configured.peering.standalone = True
    configured.posting.enabled = False
    configured.scanning.disabled = True
    configured.process.ultimate_exiting_timeout = 20
    configured.watching.chunk_size = 500
    for kind in CHILD_KINDS:
        configured.watching.label_selectors[kind.group, kind.version, kind.plural] = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
    return configured
