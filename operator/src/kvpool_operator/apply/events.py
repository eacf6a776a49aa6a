"""Events on a pool, for ``kubectl describe``. Best effort: the status says the same, so a lost one costs nothing."""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kvpool_operator.api import API_VERSION, GROUP, KIND
from kvpool_operator.kube import EVENT, ApiError, Client
from kvpool_operator.status.events import Event

_log = logging.getLogger(__name__)


async def record(client: Client, pool: Mapping[str, Any], event: Event) -> None:
    """Write one. Nothing is raised."""
    metadata = pool["metadata"]
    manifest = {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": metadata["namespace"]},
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{GROUP}/operator",
        "reportingInstance": socket.gethostname(),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            **{key: metadata[key] for key in ("name", "namespace", "uid")},
        },
        "type": event.type,
        "reason": event.reason,
        "action": event.action,
        "note": event.note,
    }
    try:
        await client.create(EVENT, manifest)
    except ApiError as error:
        _log.warning("%s/%s: no Event %s: %s", metadata["namespace"], metadata["name"], event.reason, error.message)
