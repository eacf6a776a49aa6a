"""Leaving an engine's replicas to whoever scales it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_operator.apply.record import Record
from kvpool_operator.apply.turn import engine_of
from kvpool_operator.desired import Manifest, Pool
from kvpool_operator.desired.scaling import other_scalers


def scaled(wanted: Manifest, live: Mapping[str, Any], record: Record, number: str) -> Manifest:
    """Return the manifest, without the replicas where somebody else scales the engine.

    An edit of the pool's own number takes them back, once.

    Args:
        number: the pool's own number, see `number_of`.
    """
    is_edited = number not in ("", record.replicas)
    if not engine_of(live) or not other_scalers(live) or is_edited:
        return wanted
    spec = {key: value for key, value in wanted["spec"].items() if key != "replicas"}
    return {**wanted, "spec": spec}


def number_of(pool: Pool, workload: Mapping[str, Any]) -> str:
    """Return the number of Pods that the pool's spec has for a workload's engine.

    It is empty where the spec leaves it open, and for a workload that runs no engine.
    """
    name = engine_of(workload)
    for engine in pool.spec.engines:
        if engine.name == name and "replicas" in engine.model_fields_set:
            return str(engine.replicas)
    return ""
