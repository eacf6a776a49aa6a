"""Room for the CPU tier: requests and limits that are there grow by it, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_connector.config import parse_quantity
from kvpool_operator.desired.sizing import quantity
from kvpool_operator.injection import names

Json = dict[str, Any]
_HEAD = "head"


def raised(pod: Json, index: int, tier: int) -> Json:
    """The Pod with ``tier`` bytes more for the container and, where it has resources of its own, for the Pod.

    What is not set stays so: without a limit there is nothing to exceed. A Pod of Ray that runs no engine needs no room for
    one. A Pod that carries our mark was raised before.
    """
    if (
        names.INJECTED in names.annotations_of(pod)
        or names.annotations_of(pod).get(names.MEMORY) == names.MEMORY_KEEP
        or (names.ray_cluster(pod) is not None and not _may_run_engine(pod, index))
    ):
        return pod
    spec = pod["spec"]
    containers = list(spec["containers"])
    containers[index] = _with_more(containers[index], tier)
    return {**pod, "spec": _with_more({**spec, "containers": containers}, tier)}


def _may_run_engine(pod: Json, index: int) -> bool:
    """Return whether an engine may run in a Pod of Ray: not in a head, nor where there is no GPU or
    other device to compute on."""
    is_head = names.labels_of(pod).get(names.RAY_NODE_TYPE) == _HEAD
    return not is_head and _has_device(pod["spec"]["containers"][index].get("resources") or {})


def _has_device(resources: Mapping[str, Any]) -> bool:
    """Return whether a device is asked for, by a claim or by a vendor's name as ``nvidia.com/gpu``."""
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    devices = [name for name, amount in amounts.items() if _is_device(name) and str(amount) != "0"]
    return bool(devices or resources.get("claims"))


def _is_device(name: str) -> bool:
    """Return whether a resource is a device to compute on.

    Kubernetes' own resources have no domain in their name, and devices for RDMA compute nothing.
    """
    return "/" in name and "rdma" not in name


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
