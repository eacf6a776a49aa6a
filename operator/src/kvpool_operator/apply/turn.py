"""Whose turn it is where engines roll one after the other. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_operator.apply.decision import is_complete
from kvpool_operator.desired import engines
from kvpool_operator.desired.names import COMPONENT_LABEL, ENGINE_LABEL
from kvpool_operator.observe.cache import Key

_KINDS = ("Deployment", "StatefulSet")


class Turn:
    """Lets the engines of one pool roll one after the other, in one look at them."""

    def __init__(self, own: Mapping[Key, Mapping[str, Any]]) -> None:
        self._engines = [body for body in own.values() if engine_of(body)]
        self._taken = ""

    def has(self, workload: Mapping[str, Any]) -> bool:
        """Return whether a workload may roll.

        It may if all other engines have all of their Pods, and none was let before it.
        """
        name = engine_of(workload)
        others = [engine for engine in self._engines if engine_of(engine) != name]
        return not name or (not self._taken and all(map(is_complete, others)))

    def take(self, workload: Mapping[str, Any]) -> None:
        """Note that a workload rolls."""
        self._taken = engine_of(workload) or self._taken


def engine_of(workload: Mapping[str, Any]) -> str:
    """Return the name of the engine that a workload runs; empty for one that runs none."""
    labels = workload["metadata"].get("labels") or {}
    is_engine = workload["kind"] in _KINDS and labels.get(COMPONENT_LABEL) == engines.COMPONENT
    return str(labels.get(ENGINE_LABEL, "")) if is_engine else ""
