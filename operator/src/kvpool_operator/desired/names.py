"""Names, labels and owner references of all children, and nothing else."""

from __future__ import annotations

import hashlib
import re

from kvpool_operator.api import API_VERSION, GROUP, KIND, Engine
from kvpool_operator.desired.pool import Manifest, Pool

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "kvpool-operator"
FIELD_MANAGER = "kvpool-operator"
"""Under which name the API server notes the fields that this operator writes."""
POOL_LABEL = f"{GROUP}/pool"
ENGINE_LABEL = f"{GROUP}/engine"
COMPONENT_LABEL = "app.kubernetes.io/component"

CONSUMER_LABEL = f"{GROUP}/consumer"
"""On users' Pods that use a pool; its value is `consumer_value` of the pool."""

CONFIG_HASH_ANNOTATION = f"{GROUP}/config-hash"
"""On Pod templates: a new configuration makes new Pods."""

ROLLOUT_ANNOTATION = f"{GROUP}/rollout"
"""On workloads: how they came to their Pod template, see `apply.record`."""

POOL_NAMESPACE_LABEL = f"{GROUP}/pool-namespace"
"""On copies in other namespaces: where the pool is."""
POOL_UID_LABEL = f"{GROUP}/pool-uid"
"""On copies in other namespaces, in place of an owner reference."""
SECRET_UIDS_ANNOTATION = f"{GROUP}/secret-uids"
"""On copies: a Secret that was made anew is copied anew, although a manifest's hash leaves the data of Secrets out."""

STORE_CONTAINER = "store"
ENGINE_CONTAINER = "engine"
LMCACHE_CONTAINER = "lmcache"

_READABLE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\.[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_MOST_LABEL = 63


def consumer_value(namespace: str, name: str) -> str:
    """Return the value of `CONSUMER_LABEL` for a pool, which no pool of another namespace has.

    It is `<namespace>.<name>`, or a digest, which has no dot, where a label cannot hold that.
    """
    value = f"{namespace}.{name}"
    if len(value) <= _MOST_LABEL and _READABLE.fullmatch(value):
        return value
    return hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:40]


def store(pool: Pool) -> str:
    """Deployment, Service and ConfigMap of the store."""
    return f"{pool.name}-store"


def store_auth(pool: Pool) -> str:
    return f"{pool.name}-store-auth"


def store_users(pool: Pool) -> str:
    """Secret with the users that a server lets in. No tool that keeps passwords in step has to know it."""
    return f"{pool.name}-store-users"


def members(pool: Pool) -> str:
    """Headless Service that gives each server of a store a name of its own."""
    return f"{pool.name}-members"


def sentinel(pool: Pool) -> str:
    """StatefulSet, Service and ConfigMap of the sentinels."""
    return f"{pool.name}-sentinel"


def group_auth(pool: Pool) -> str:
    """Secret with which the servers of a fail-over group and their sentinels trust each other."""
    return f"{pool.name}-group-auth"


def master(pool: Pool) -> str:
    """Workload, Service and ConfigMap of Mooncake's masters."""
    return f"{pool.name}-master"


def etcd(pool: Pool) -> str:
    """StatefulSet and headless Service of etcd."""
    return f"{pool.name}-etcd"


def member_host(pool: Pool, stateful_set: str, number: int | str, service: str) -> str:
    """The full name of one Pod of a StatefulSet."""
    return f"{stateful_set}-{number}.{service_host(pool, service)}"


def connector(pool: Pool) -> str:
    return f"{pool.name}-connector"


def lmcache(pool: Pool) -> str:
    """DaemonSet and Service of LMCache's server."""
    return f"{pool.name}-lmcache"


def hash_seed(pool: Pool) -> str:
    return f"{pool.name}-hash-seed"


def copy(pool: Pool, part: str) -> str:
    """A copy in another namespace. No pool there can have a child of this name: names of pools have no dot."""
    return f"{pool.namespace}.{pool.name}-{part}"


def engine(pool: Pool, which: Engine) -> str:
    """Deployment and Service of an engine."""
    return f"{pool.name}-{which.name}"


def service_host(pool: Pool, service: str) -> str:
    """The Service's full name, so that a client needs no search path."""
    return f"{service}.{pool.namespace}.svc.{pool.settings.cluster_domain}"


def labels(pool: Pool, component: str, engine_name: str | None = None) -> dict[str, str]:
    """Labels of a child. Watches and pruning select by them."""
    return {
        "app.kubernetes.io/name": "kvpool",
        "app.kubernetes.io/instance": pool.name,
        MANAGED_BY_LABEL: MANAGED_BY,
        **selector(pool, component, engine_name),
    }


def selector(pool: Pool, component: str, engine_name: str | None = None) -> dict[str, str]:
    """The part of the labels that selects Pods. It can never change: selectors of Deployments are immutable."""
    engine_label = {ENGINE_LABEL: engine_name} if engine_name else {}
    return {POOL_LABEL: pool.name, COMPONENT_LABEL: component, **engine_label}


def child(pool: Pool, api_version: str, kind: str, name: str, child_labels: dict[str, str]) -> Manifest:
    """The head of a child's manifest. The owner reference makes Kubernetes delete the child with the pool."""
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": pool.name, "uid": pool.uid, "controller": True}
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": pool.namespace,
            "labels": child_labels,
            "ownerReferences": [owner],
        },
    }
