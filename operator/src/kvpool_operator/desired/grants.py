"""Copies of what Pods mount, for the namespaces that ``spec.injection.allowedNamespaces`` names and that take the pool.

A Pod can mount only what is in its own namespace. A copy has no owner reference, since owners can't be in another namespace:
labels say to which pool it belongs, and the operator deletes it with the pool, with the grant, or at its next start.

A Secret that a person made (the password of an external store) is never copied.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from kvpool_operator.desired import connector_config, names, seed
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.stores import redis, remotes

COMPONENT = "grant"


@dataclass(frozen=True)
class Objects:
    """Names of what a Pod mounts, in the Pod's namespace.

    Attributes:
        password: Secret and key; None where the store asks for none.
        created: kind and name of those that the operator makes.
    """

    config_map: str
    seed: str
    password: tuple[str, str] | None
    created: tuple[tuple[str, str], ...]


def can_share(pool: Pool) -> bool:
    """Whether Pods of other namespaces can have all that they need."""
    return pool.spec.managed_store is not None or not remotes.password_sources(pool)


def objects(pool: Pool, namespace: str) -> Objects:
    """What a Pod in this namespace mounts."""
    own = namespace == pool.namespace
    config_map = names.connector(pool) if own else names.copy(pool, "connector")
    hash_seed = names.hash_seed(pool) if own else names.copy(pool, "hash-seed")
    created = [("ConfigMap", config_map), ("Secret", hash_seed)]
    password = connector_config.password_source(pool)
    if password is not None and not own:
        password = names.copy(pool, "store-auth"), redis.PASSWORD_KEY
    if password is not None and pool.spec.managed_store is not None:
        created.append(("Secret", password[0]))
    return Objects(config_map, hash_seed, password, tuple(created))


def build(pool: Pool) -> list[Manifest]:
    """Every copy; none where one would be of a person's Secret."""
    if not can_share(pool):
        return []
    return [manifest for namespace in pool.shared_with for manifest in _copies(pool, namespace)]


def _copies(pool: Pool, namespace: str) -> list[Manifest]:
    wanted = objects(pool, namespace)
    made = [
        _copy(pool, namespace, "ConfigMap", wanted.config_map)
        | {"data": {connector_config.FILE: connector_config.text(pool)}},
        _secret(pool, namespace, wanted.seed, seed.KEY, pool.material.hash_seed),
    ]
    if wanted.password is not None:
        made.append(_secret(pool, namespace, *wanted.password, pool.material.store_password))
    return made


def _secret(pool: Pool, namespace: str, name: str, key: str, value: str) -> Manifest:
    data = {key: base64.b64encode(value.encode()).decode()}
    return _copy(pool, namespace, "Secret", name) | {"type": "Opaque", "data": data}


def _copy(pool: Pool, namespace: str, kind: str, name: str) -> Manifest:
    labels = {
        **names.labels(pool, COMPONENT),
        names.POOL_NAMESPACE_LABEL: pool.namespace,
        names.POOL_UID_LABEL: pool.uid,
    }
    annotations = {
        names.SECRET_UIDS_ANNOTATION: f"{pool.material.seed_secret_uid} {pool.material.store_secret_uid}".strip()
    }
    metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}
