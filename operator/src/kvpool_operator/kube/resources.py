"""The resources that the operator touches. The chart's RBAC rules allow these and no others; a test compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvpool_operator.api import GROUP, KIND, PLURAL, VERSION


@dataclass(frozen=True)
class Resource:
    """One resource of the API."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The path; an empty namespace means all of them, or a resource that is in none."""
        root = f"/apis/{self.group}" if self.group else "/api"
        where = f"namespaces/{namespace}/" if namespace else ""
        parts = [f"{root}/{self.version}/{where}{self.plural}", name, subresource]
        return "/".join(part for part in parts if part)


POOL = Resource(GROUP, VERSION, PLURAL, KIND)
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap")
SECRET = Resource("", "v1", "secrets", "Secret")
SERVICE = Resource("", "v1", "services", "Service")
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment")
DAEMON_SET = Resource("apps", "v1", "daemonsets", "DaemonSet")
STATEFUL_SET = Resource("apps", "v1", "statefulsets", "StatefulSet")
POD_DISRUPTION_BUDGET = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICY = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
POD = Resource("", "v1", "pods", "Pod")
EVENT = Resource("events.k8s.io", "v1", "events", "Event")
RAY_CLUSTER = Resource("ray.io", "v1", "rayclusters", "RayCluster")
LLM_SERVICES = tuple(
    Resource("serving.kserve.io", version, "llminferenceservices", "LLMInferenceService")
    for version in ("v1alpha2", "v1alpha1")
)
"""KServe 0.17 keeps the first, 0.16 knows the second alone."""
WEBHOOKS = Resource(
    "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration"
)

CHILD_KINDS = (
    SECRET,
    CONFIG_MAP,
    SERVICE,
    DEPLOYMENT,
    DAEMON_SET,
    STATEFUL_SET,
    POD_DISRUPTION_BUDGET,
    NETWORK_POLICY,
)
"""Kinds of children: watched, applied and pruned."""

_BY_KIND = {(resource.api_version, resource.kind): resource for resource in (*CHILD_KINDS, POOL)}


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The resource that a manifest belongs to."""
    return _BY_KIND[manifest["apiVersion"], manifest["kind"]]
