"""The resources that the operator touches.

The chart's RBAC rules allow these and no others: a unit test compares the two, and a test with an
API server compares the rules with what the operator asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvpool_operator.api import GROUP, KIND, PLURAL, VERSION
from kvpool_operator.api.object_names import is_object_name


class NotAName(ValueError):
    """No object and no namespace can have this name."""


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

    def list_path(self, namespace: str) -> str:
        """Return the path of all objects in a namespace. An empty one means all namespaces, or a resource
        that is in none.

        Raises:
            NotAName: no namespace can have this name. HTTP clients resolve ``..`` in a path, so a name
                that was not checked could lead to any other object.
        """
        root = f"/apis/{self.group}" if self.group else "/api"
        where = f"namespaces/{_checked(namespace)}/" if namespace else ""
        return f"{root}/{self.version}/{where}{self.plural}"

    def object_path(self, namespace: str, name: str, subresource: str = "") -> str:
        """Return the path of one object.

        Raises:
            NotAName: no object or no namespace can have such a name.
        """
        path = f"{self.list_path(namespace)}/{_checked(name)}"
        return f"{path}/{subresource}" if subresource else path


def _checked(name: str) -> str:
    if not is_object_name(name):
        raise NotAName(f"{name[:60]!r} cannot be the name of an object")
    return name


POOL = Resource(GROUP, VERSION, PLURAL, KIND)
CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap")
SECRET = Resource("", "v1", "secrets", "Secret")
SERVICE = Resource("", "v1", "services", "Service")
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment")
DAEMON_SET = Resource("apps", "v1", "daemonsets", "DaemonSet")
STATEFUL_SET = Resource("apps", "v1", "statefulsets", "StatefulSet")
CLAIM = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
POD_DISRUPTION_BUDGET = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICY = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
NAMESPACE = Resource("", "v1", "namespaces", "Namespace")
POD = Resource("", "v1", "pods", "Pod")
ENDPOINT_SLICE = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
EVENT = Resource("events.k8s.io", "v1", "events", "Event")
LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease")
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
