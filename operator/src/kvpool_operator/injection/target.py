"""Which container of a Pod runs vLLM. Its words are looked at to tell, and never changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvpool_operator.injection import names
from kvpool_operator.injection.outcome import Skip, Why

Container = Mapping[str, Any]
_KSERVE = "kserve-container"
"""KServe's name for the container that serves the model."""
_RAY = ("ray-head", "ray-worker")
_VLLM = re.compile(r"vllm|huggingfaceserver|kvpool/serving", re.IGNORECASE)


def find(pod: Mapping[str, Any]) -> int:
    """Return the place in ``spec.containers`` of the container that gets the cache. It is

    1. the one that the annotation ``kvpool.dev/container`` names;
    2. in a Pod of Ray the one that Ray runs in: ``ray-head``, ``ray-worker``, else the first;
    3. the only one;
    4. the only one that speaks of vLLM in its image, command or arguments;
    5. the only one that asks for a device: of those that speak of vLLM, else of all.

    Raises:
        Skip: none or several are left, or the Pod is one of KServe's that runs no engine.
    """
    containers: Sequence[Container] = pod.get("spec", {}).get("containers") or []
    wanted = names.annotations_of(pod).get(names.CONTAINER)
    if wanted:
        return _named(containers, wanted)
    if names.is_beside_engine(pod):
        raise Skip(Why.NO_VLLM, "KServe runs no engine in this Pod, but in others of the service")
    if names.ray_cluster(pod) is not None:
        return next((place for place, one in enumerate(containers) if one["name"] in _RAY), 0)
    if len(containers) == 1:
        return 0
    speaking = [place for place, one in enumerate(containers) if _speaks_of_vllm(one)]
    if len(speaking) == 1:
        return speaking[0]
    among = speaking or range(len(containers))
    computing = [place for place in among if has_device(containers[place])]
    if len(computing) == 1:
        return computing[0]
    raise _unclear(containers, speaking)


def _named(containers: Sequence[Container], wanted: str) -> int:
    known = [str(container["name"]) for container in containers]
    if wanted in known:
        return known.index(wanted)
    raise Skip(
        Why.NO_VLLM,
        f"the annotation {names.CONTAINER} names {wanted}, but the Pod's containers are {', '.join(known)}",
    )


def _speaks_of_vllm(container: Container) -> bool:
    words = (container.get("image") or "", *(container.get("command") or ()), *(container.get("args") or ()))
    return container["name"] == _KSERVE or any(_VLLM.search(str(word)) for word in words)


def _unclear(containers: Sequence[Container], speaking: Sequence[int]) -> Skip:
    if speaking:
        found = ", ".join(str(containers[place]["name"]) for place in speaking)
        return Skip(Why.SEVERAL, f"containers {found} all look like vLLM: name one in the annotation {names.CONTAINER}")
    return Skip(
        Why.NO_VLLM,
        "no container speaks of vLLM in its image, command or arguments, nor does exactly one ask for a GPU: "
        f"name the one that runs vLLM in the annotation {names.CONTAINER}",
    )


def has_device(container: Container) -> bool:
    """Return whether a container asks for a device to compute on, by a claim or by a vendor's name
    such as ``nvidia.com/gpu``.

    Kubernetes' own resources have no domain in their name, and devices for RDMA compute nothing.
    """
    resources = container.get("resources") or {}
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    devices = [name for name, amount in amounts.items() if "/" in name and "rdma" not in name and str(amount) != "0"]
    return bool(devices or resources.get("claims"))
