"""What the servers of all stores have in common: spreading over nodes, budgets, names of their own, memory."""

from __future__ import annotations

from collections.abc import Sequence

from kvpool_operator.api import Backend
from kvpool_operator.api.sections import Resources
from kvpool_operator.desired import names
from kvpool_operator.desired.podpatch import merge, merge_templates
from kvpool_operator.desired.pool import Manifest, Pool

STORE = "store"
"""Component of the servers that hold blocks."""
DEFAULT_MEMORY = "1Gi"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""Kubernetes puts a namespace's name into it."""


def memory(backend: Backend) -> str:
    """Limit of each server that holds blocks."""
    return backend.memory or DEFAULT_MEMORY


def affinity(pool: Pool, component: str) -> Manifest:
    """Preferred and not required: on a cluster of one node servers are better together than pending."""
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": names.selector(pool, component)},
    }
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def budget(pool: Pool, name: str, component: str) -> Manifest:
    """One at a time: a drained node never takes two servers of a component at once."""
    return names.child(pool, "policy/v1", "PodDisruptionBudget", name, names.labels(pool, component)) | {
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.selector(pool, component)},
        }
    }


def pool_pods(pool: Pool) -> list[Manifest]:
    """Return the sources of a NetworkPolicy that are the pool's own Pods, and users' Pods that were given the pool."""
    consumer = {names.CONSUMER_LABEL: names.consumer_value(pool.namespace, pool.name)}
    consumers = {"podSelector": {"matchLabels": consumer}}
    elsewhere = [
        {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: namespace}}, **consumers}
        for namespace in pool.shared_with
        if namespace != pool.namespace
    ]
    return [{"podSelector": {"matchLabels": {names.POOL_LABEL: pool.name}}}, consumers, *elsewhere]


def component_pods(pool: Pool, component: str) -> list[Manifest]:
    """Return the source that is one component of the pool, for a NetworkPolicy."""
    return [{"podSelector": {"matchLabels": names.selector(pool, component)}}]


def operator_pods(pool: Pool) -> list[Manifest]:
    """For a NetworkPolicy: the operator's namespace."""
    return [{"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: pool.settings.namespace}}}]


def network_policy(
    pool: Pool,
    name: str,
    component: str,
    *,
    clients: Sequence[Manifest],
    others: Sequence[tuple[list[Manifest], Sequence[Manifest]]] = (),
) -> Manifest:
    """Return the NetworkPolicy of a component that kvpool runs. Every component has one from here.

    A Pod that uses its node's network has the node's address, which no Pod selector matches: an
    engine or consumer with ``hostNetwork`` needs a policy of the user's beside this one.

    Args:
        clients: ports for the pool's own Pods, the servers among them, and for consumers.
        others: sources, and the ports that they may reach.
    """
    rules = [(pool_pods(pool), clients), *others]
    ingress = [{"from": sources, "ports": list(ports)} for sources, ports in rules if ports]
    head = names.child(pool, "networking.k8s.io/v1", "NetworkPolicy", name, names.labels(pool, component))
    selector = {"matchLabels": names.selector(pool, component)}
    return head | {"spec": {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress}}


def tcp(first: int, last: int | None = None) -> Manifest:
    """A port, or a range of them, in a NetworkPolicy."""
    return {"protocol": "TCP", "port": first, **({"endPort": last} if last else {})}


def service(pool: Pool, name: str, component: str, ports: dict[str, int], *, headless: bool = False) -> Manifest:
    """A Service. A headless one names Pods before they are ready: they have to find each other to become so."""
    spec: Manifest = {
        "selector": names.selector(pool, component),
        "ports": [
            {"name": port, "port": number, "targetPort": port, "protocol": "TCP"} for port, number in ports.items()
        ],
    }
    if headless:
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    return names.child(pool, "v1", "Service", name, names.labels(pool, component)) | {"spec": spec}


def config_map(pool: Pool, name: str, component: str, files: dict[str, str]) -> Manifest:
    return names.child(pool, "v1", "ConfigMap", name, names.labels(pool, component)) | {"data": files}


def container_ports(ports: dict[str, int]) -> list[Manifest]:
    return [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in ports.items()]


def with_resources(base: Manifest, wanted: Resources | None) -> Manifest:
    """Requests and limits of ours, with the user's on top."""
    return merge(base, wanted.model_dump(exclude_none=True)) if wanted else base


def block_resources(backend: Backend, *, limits: Manifest | None = None) -> Manifest:
    """Memory from ``memory``, as request and limit; the rest from ``resources``.

    Half a core as a request: every engine of the pool waits for these servers, and on a busy node the request is their share.
    """
    fixed = {"memory": memory(backend)}
    base: Manifest = {"requests": {"cpu": "500m", **fixed}, "limits": {**fixed, **(limits or {})}}
    return merge(with_resources(base, backend.resources), {"requests": fixed, "limits": fixed})


def template(pool: Pool, component: str, rolled_by: str, spec: Manifest) -> Manifest:
    """A Pod template. ``rolled_by`` is the hash of what the Pods read at their start only."""
    selector = names.selector(pool, component)
    head = {
        "labels": names.labels(pool, component),
        "annotations": {names.CONFIG_HASH_ANNOTATION: rolled_by},
    }
    own = {"metadata": head, "spec": spec}
    return merge_templates(own, pool.settings.store_defaults.pod_template, selector=selector)


def deployment(pool: Pool, name: str, component: str, pod_template: Manifest) -> Manifest:
    """One Pod, which ends before its successor starts: two servers behind one Service would each have half of the blocks."""
    return names.child(pool, "apps/v1", "Deployment", name, names.labels(pool, component)) | {
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": names.selector(pool, component)},
            "template": pod_template,
        }
    }


def stateful_set(
    pool: Pool, name: str, component: str, pod_template: Manifest, *, replicas: int, service_name: str
) -> Manifest:
    """Pods with names of their own, started together."""
    return names.child(pool, "apps/v1", "StatefulSet", name, names.labels(pool, component)) | {
        "spec": {
            "replicas": replicas,
            "serviceName": service_name,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": names.selector(pool, component)},
            "template": pod_template,
        }
    }
