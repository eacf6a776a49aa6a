"""Room for the tiers: requests and limits that are there grow by them, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_connector.config import parse_quantity
from kvpool_operator.desired.sizing import quantity
from kvpool_operator.injection import names, target

Json = dict[str, Any]
_HEAD = "head"


def raised(pod: Json, place: int, more: Mapping[str, int]) -> Json:
    """Return the Pod with more for the container and, where it has resources of its own, for the Pod.

    What is not set stays so: without a limit there is nothing to exceed. A Pod of Ray that runs no
    engine needs no room for one. A Pod that carries our mark was raised before.

    Args:
        more: bytes by the resource's name.
    """
    if (
        names.INJECTED in names.annotations_of(pod)
        or names.annotations_of(pod).get(names.MEMORY) == names.MEMORY_KEEP
        or (names.ray_cluster(pod) is not None and not _may_run_engine(pod, place))
    ):
        return pod
    spec = pod["spec"]
    containers = list(spec["containers"])
    containers[place] = _with_more(containers[place], more)
    return {**pod, "spec": _with_more({**spec, "containers": containers}, more)}


def _may_run_engine(pod: Json, place: int) -> bool:
    """Return whether an engine may run in a Pod of Ray: not in a head, nor where there is no GPU or
    other device to compute on."""
    is_head = names.labels_of(pod).get(names.RAY_NODE_TYPE) == _HEAD
    return not is_head and target.has_device(pod["spec"]["containers"][place])


def _with_more(holder: Json, more: Mapping[str, int]) -> Json:
    resources = holder.get("resources")
    if not resources:
        return holder
    grown = {
        kind: {name: _grown(amount, more.get(name, 0)) for name, amount in amounts.items()}
        if kind in ("requests", "limits") and amounts
        else amounts
        for kind, amounts in resources.items()
    }
    return {**holder, "resources": grown}


def _grown(amount: Any, more: int) -> Any:
    if not more:
        return amount
    try:
        return quantity(parse_quantity(str(amount)) + more)
    except ValueError:  # thousandths of a byte: legal, and nobody's sizing
        return amount
