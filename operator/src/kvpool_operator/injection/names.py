"""Annotations, labels, volume names and paths of injected Pods, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_operator.api import GROUP
from kvpool_operator.desired.names import CONSUMER_LABEL

POOL = f"{GROUP}/pool"
"""Annotation: ``<name>`` or ``<namespace>/<name>`` of the pool to use. The one thing that a user has to write."""
CONTAINER = f"{GROUP}/container"
"""Annotation: the container that runs vLLM, where that can't be seen."""
MEMORY = f"{GROUP}/memory"
"""Annotation: ``keep`` leaves memory requests and limits as they are."""
MEMORY_KEEP = "keep"

INJECTED = f"{GROUP}/injected"
"""Annotation: ``<namespace>/<name>@<hash>``, the pool and the configuration that a Pod was made for."""
SKIP_REASON = f"{GROUP}/skip-reason"
"""Annotation: ``<word>: <what to do>``, why an object was left as it was."""
CONSUMER = CONSUMER_LABEL
"""Label on every Pod that was looked at, with the pool's name; the operator watches Pods by it."""

RAY_CLUSTER = "ray.io/cluster"
"""Label of KubeRay on Pods: the RayCluster, whose annotations are the RayService's."""
RAY_NODE_TYPE = "ray.io/node-type"
"""Label of KubeRay: head or worker."""

VOLUME_CONFIG = "kvpool-config"
VOLUME_PASSWORD = "kvpool-store-auth"  # noqa: S105  (a volume's name)
VOLUME_SENTINEL = "kvpool-sentinel-auth"
VOLUME_DISK = "kvpool-disk"
VOLUME_SHM = "kvpool-shm"
VOLUME_PAYLOAD = "kvpool-payload"
PAYLOAD_CONTAINER = "kvpool-payload"
PAYLOAD_DIRECTORY = "/opt/kvpool-payload"
SHM_DIRECTORY = "/dev/shm"  # noqa: S108  (inside the container)

PoolKey = tuple[str, str]
"""Namespace and name."""


def annotations_of(body: Mapping[str, Any]) -> Mapping[str, str]:
    return body.get("metadata", {}).get("annotations") or {}


def labels_of(body: Mapping[str, Any]) -> Mapping[str, str]:
    return body.get("metadata", {}).get("labels") or {}


def pool_key(reference: str, namespace: str) -> PoolKey:
    """The pool that an annotation in this namespace means."""
    first, slash, last = reference.strip().partition("/")
    return (first, last) if slash else (namespace, first)


def ray_cluster(pod: Mapping[str, Any]) -> str | None:
    """The RayCluster that a Pod belongs to."""
    return labels_of(pod).get(RAY_CLUSTER)
