"""Who says how many Pods an engine has: its pool, or somebody who scales it, such as an autoscaler.

The API server notes for each field who wrote it. Whoever writes another number into
``spec.replicas`` of an engine's workload owns it from then on, by the subresource ``scale`` or
otherwise, and the pool leaves it alone until its own number is edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_operator.api import Engine
from kvpool_operator.desired.names import FIELD_MANAGER


def other_scalers(workload: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of managedFields by which others than the operator own the replicas."""
    return [
        entry
        for entry in workload["metadata"].get("managedFields") or ()
        if entry.get("manager") != FIELD_MANAGER and _owns_replicas(entry)
    ]


def wanted_replicas(engine: Engine, workload: Mapping[str, Any] | None) -> int:
    """Return how many Pods an engine is to have, whoever says so."""
    if not workload or not other_scalers(workload):
        return engine.replicas
    return int(workload["spec"].get("replicas", 1))


def _owns_replicas(entry: Mapping[str, Any]) -> bool:
    fields = entry.get("fieldsV1") or {}
    return "f:replicas" in (fields.get("f:spec") or {})
