"""Annotations, labels, volume names and paths of injected Pods, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvpool_operator.api import GROUP
from kvpool_operator.api.object_names import is_object_name
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
"""Annotation: ``<word>: <what to do>``, why a Pod was left as it was."""
WARNING = f"{GROUP}/warning"
"""Annotation: what its owner should know of an injection."""
CONSUMER = CONSUMER_LABEL
"""Label on every Pod that was looked at; the operator watches Pods by it. Its value is the pool on Pods that got
the pool (``consumer_value``), which the NetworkPolicies of a store select, and ``NO_POOL`` on all others."""
NO_POOL = "No-Pool"
"""The value for no pool: names of Kubernetes' objects have no capitals."""

RAY_CLUSTER = "ray.io/cluster"
"""Label of KubeRay on Pods: the RayCluster, whose annotations are the RayService's."""
RAY_NODE_TYPE = "ray.io/node-type"
"""Label of KubeRay: head or worker."""

RAY_CLUSTER_KIND = "RayCluster"
LLM_KIND = "LLMInferenceService"
LLM_NAME = "app.kubernetes.io/name"
"""Label of KServe on Pods of an LLMInferenceService: its name, where ``LLM_COMPONENT`` says that it is one."""
LLM_COMPONENT = "app.kubernetes.io/component"
INFERENCE_SERVICE = "serving.kserve.io/inferenceservice"
"""Label of KServe on Pods of an InferenceService: its name."""
KSERVE_COMPONENT = "component"
"""Label of KServe on these Pods: predictor, transformer or explainer."""
TEMPLATE_HASH = "pod-template-hash"
"""Label of Deployments on their Pods; their ReplicaSets are called after it."""
LLM_PREFIX = "llminferenceservice-"
LLM_WORKLOAD = f"{LLM_PREFIX}workload"
"""Beginning of that label on Pods that run vLLM; what follows tells leaders, workers and prefill apart."""

VOLUME_CONFIG = "kvpool-config"
VOLUME_PASSWORD = "kvpool-store-auth"  # noqa: S105  (a volume's name)
VOLUME_SENTINEL = "kvpool-sentinel-auth"
VOLUME_DISK = "kvpool-disk"

PoolKey = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class Parent:
    """A user's object in the Pod's namespace, whose annotations its controller does not copy to the Pod."""

    kind: str
    name: str


def annotations_of(body: Mapping[str, Any]) -> Mapping[str, str]:
    return body.get("metadata", {}).get("annotations") or {}


def labels_of(body: Mapping[str, Any]) -> Mapping[str, str]:
    return body.get("metadata", {}).get("labels") or {}


class BadReference(ValueError):
    """An annotation that can mean no pool. The message names it and says how to write it."""


def pool_key(reference: str, namespace: str) -> PoolKey:
    """Return the pool that an annotation in this namespace means.

    Raises:
        BadReference: it can mean none.
    """
    first, slash, last = reference.strip().partition("/")
    key = (first, last) if slash else (namespace, first)
    if not all(is_object_name(part) for part in key):
        raise BadReference(f"{POOL} is {reference[:60]!r}: write <name> or <namespace>/<name> of a KVCachePool")
    return key


def ray_cluster(pod: Mapping[str, Any]) -> str | None:
    """The RayCluster that a Pod belongs to."""
    return labels_of(pod).get(RAY_CLUSTER)


def is_beside_engine(pod: Mapping[str, Any]) -> bool:
    """Return whether KServe made a Pod for something else than an engine: a transformer, an explainer
    or a scheduler. A service's annotations may reach these, too."""
    labels = labels_of(pod)
    if INFERENCE_SERVICE in labels:
        return labels.get(KSERVE_COMPONENT) in ("transformer", "explainer")
    component = labels.get(LLM_COMPONENT, "")
    return component.startswith(LLM_PREFIX) and not component.startswith(LLM_WORKLOAD)


def parent(pod: Mapping[str, Any]) -> Parent | None:
    """The object that may name the pool in the Pod's place."""
    cluster, labels = ray_cluster(pod), labels_of(pod)
    if cluster is not None:
        return Parent(RAY_CLUSTER_KIND, cluster)
    if labels.get(LLM_COMPONENT, "").startswith(LLM_WORKLOAD) and LLM_NAME in labels:
        return Parent(LLM_KIND, labels[LLM_NAME])
    return None


def workload(pod: Mapping[str, Any]) -> str:
    """Kind and name of what a person restarts, as far as the Pod tells."""
    found, labels = parent(pod), labels_of(pod)
    if found is not None:
        return f"{found.kind} {found.name}"
    if INFERENCE_SERVICE in labels:
        return f"InferenceService {labels[INFERENCE_SERVICE]}"
    for owner in pod["metadata"].get("ownerReferences", ()):
        if owner.get("controller"):
            suffix = f"-{labels.get(TEMPLATE_HASH)}"
            if owner["kind"] == "ReplicaSet" and owner["name"].endswith(suffix):
                return f"Deployment {owner['name'].removesuffix(suffix)}"
            return f"{owner['kind']} {owner['name']}"
    return f"Pod {pod['metadata'].get('name', '')}"
