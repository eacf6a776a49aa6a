"""Writing ``status``, only when it says something new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_operator.api import API_VERSION, KIND
from kvpool_operator.kube import POOL, Client, NotFound
from kvpool_operator.status.fold import same


async def write_status(client: Client, pool: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Returns whether it was written. A pool that is gone is no error."""
    if same(pool.get("status", {}), status):
        return False
    metadata = pool["metadata"]
    # The uid makes this fail for a namesake instead of creating or changing it.
    head = {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": head, "status": status}
    try:
        await client.apply(POOL, manifest, subresource="status")
    except NotFound:
        return False
    return True
