"""Room for the CPU tier: requests and limits that are there grow by it, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_connector.config import parse_quantity
from kvpool_operator.desired.sizing import quantity
from kvpool_operator.injection import names

Json = dict[str, Any]


def raised(pod: Json, index: int, tier: int) -> Json:
    """The Pod with ``tier`` bytes more for the container and, where it has resources of its own, for the Pod.

    What is not set stays so: without a limit there is nothing to exceed. The head of a Ray cluster runs no engine. A Pod that
    carries our mark was raised before.
    """
    if (
        names.INJECTED in names.annotations_of(pod)
        or names.annotations_of(pod).get(names.MEMORY) == names.MEMORY_KEEP
        or names.labels_of(pod).get(names.RAY_NODE_TYPE) == "head"
    ):
        return pod
    spec = pod["spec"]
    containers = list(spec["containers"])
    containers[index] = _with_more(containers[index], tier)
    return {**pod, "spec": _with_more({**spec, "containers": containers}, tier)}


def _with_more(holder: Json, tier: int) -> Json:
    resources = holder.get("resources")
    if not resources:
        return holder
    grown = {
        kind: _grown(amounts, tier) if kind in ("requests", "limits") and amounts else amounts
        for kind, amounts in resources.items()
    }
    return {**holder, "resources": grown}


def _grown(amounts: Mapping[str, Any], tier: int) -> Mapping[str, Any]:
    if "memory" not in amounts:
        return amounts
    try:
        return {**amounts, "memory": quantity(parse_quantity(str(amounts["memory"])) + tier)}
    except ValueError:  # thousandths of a byte: legal, and nobody's sizing
        return amounts
