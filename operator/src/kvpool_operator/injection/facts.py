"""What of a pool goes into a Pod of a given namespace, or why nothing does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvpool_operator.api import (
    ConflictPolicy,
    ConnectorType,
    Delivery,
    InjectionMode,
    InvalidSpec,
    Settings,
    parse_spec,
)
from kvpool_operator.api.consent import ACCEPTS
from kvpool_operator.desired import Material, Pool, connector_config, disk, grants
from kvpool_operator.desired.stores import remotes
from kvpool_operator.injection.names import PoolKey
from kvpool_operator.injection.outcome import Skip, Why

IsThere = Callable[[str, str, str], bool]
"""Whether an object of this kind, namespace and name exists."""


@dataclass(frozen=True)
class Facts:
    """A pool as a Pod sees it. Names are of objects in the Pod's namespace.

    Attributes:
        config_hash: changes with what an engine reads at its start.
        password: Secret and key; None where the store asks for none.
        cpu_tier: bytes that the connector takes in the container.
        delivery: how the connector's code comes into the container.
        payload_image: of the init container that brings it.
        engine_image: of kvpool's own engines, which has it.
        sentinel_password: as ``password``, of external sentinels.
        disk: bytes of an emptyDir for the disk tier; 0 without one, or where a person mounts its path.
    """

    key: PoolKey
    config_map: str
    config_hash: str
    seed_secret: str
    password: tuple[str, str] | None
    cpu_tier: int
    conflict_policy: ConflictPolicy
    delivery: Delivery
    payload_image: str
    engine_image: str
    sentinel_password: tuple[str, str] | None = None
    disk: int = 0

    @property
    def mark(self) -> str:
        """Of a Pod that was made for this pool in its present configuration."""
        return "/".join(self.key) + (f"@{self.config_hash}" if self.config_hash else "")


def gather(
    key: PoolKey, body: Mapping[str, Any] | None, namespace: str, settings: Settings, is_there: IsThere
) -> Facts:
    """The facts for a Pod in ``namespace``.

    Args:
        body: the KVCachePool; None where there is none.
        is_there: looks into the watch cache; what is not there would keep the Pod from starting.

    Raises:
        Skip: this Pod gets no cache.
    """
    pool = _pool(key, body, settings)
    injection = pool.spec.injection
    if injection.mode is InjectionMode.OFF:
        raise Skip(Why.OFF, f"spec.injection.mode of pool {'/'.join(key)} is Off: set it to Pod")
    if pool.spec.connector.type is not ConnectorType.KVPOOL:
        raise Skip(
            Why.OTHER_TYPE,
            f"spec.connector.type of pool {'/'.join(key)} is {pool.spec.connector.type}, and only kvpool's own connector is put "
            "into Pods of others: set it to KVPool",
        )
    foreign = namespace != pool.namespace
    if foreign and namespace not in injection.allowed_namespaces:
        raise Skip(
            Why.NOT_ALLOWED,
            f"pool {'/'.join(key)} does not allow this namespace: add {namespace} to its spec.injection.allowedNamespaces",
        )
    if foreign and not grants.can_share(pool):
        raise Skip(
            Why.SECRET_NOT_SHARED,
            f"pool {'/'.join(key)} uses an external store with a password, and a Secret of yours is never copied: make a pool "
            f"with the same spec.backend.external in namespace {namespace}",
        )
    objects = grants.objects(pool, namespace)
    sentinels = [one for one in remotes.password_sources(pool) if one.directory == remotes.SENTINEL_PASSWORD_DIRECTORY]
    for kind, name in objects.created:
        if not is_there(kind, namespace, name):
            _refuse_without_consent(key, body or {}, namespace)
            raise Skip(
                Why.POOL_NOT_READY,
                f"{kind} {name} of pool {'/'.join(key)} is not in this namespace yet: restart the Pod when the pool's condition "
                "ConfigRendered is True",
            )
    _refuse_missing_secret(key, body or {})
    return Facts(
        key=key,
        config_map=objects.config_map,
        config_hash=str((body or {}).get("status", {}).get("config", {}).get("hash", "")),
        seed_secret=objects.seed,
        password=objects.password,
        cpu_tier=connector_config.cpu_tier_bytes(pool),
        conflict_policy=injection.conflict_policy,
        sentinel_password=(sentinels[0].secret, sentinels[0].key) if sentinels else None,
        disk=disk.scratch_bytes(pool),
        delivery=injection.delivery,
        payload_image=settings.images.payload,
        engine_image=settings.images.engine,
    )


def _pool(key: PoolKey, body: Mapping[str, Any] | None, settings: Settings) -> Pool:
    if body is None or "deletionTimestamp" in body["metadata"]:
        raise Skip(
            Why.POOL_MISSING, f"there is no KVCachePool {key[1]} in namespace {key[0]}: create it, then restart the Pod"
        )
    try:
        spec = parse_spec(body.get("spec", {}))
    except InvalidSpec as error:
        raise Skip(Why.POOL_NOT_READY, f"pool {'/'.join(key)} can't be used: {error}") from None
    material = Material(store_password="", hash_seed="")
    return Pool(key[1], key[0], str(body["metadata"]["uid"]), spec, material, settings)


def _refuse_without_consent(key: PoolKey, body: Mapping[str, Any], namespace: str) -> None:
    """Nothing of the pool is in a namespace that does not take it; the pool's status says whether that is why."""
    if namespace in body.get("status", {}).get("refusingNamespaces", ()):
        pool = "/".join(key)
        raise Skip(
            Why.NOT_ACCEPTED,
            f"this namespace does not say that it takes pool {pool}: its owner types "
            f"kubectl annotate namespace {namespace} {ACCEPTS}={pool}",
        )


def _refuse_missing_secret(key: PoolKey, body: Mapping[str, Any]) -> None:
    """A Secret of the user's is in no cache of ours; what the pool's status says about it is."""
    for condition in body.get("status", {}).get("conditions", ()):
        if condition.get("reason") in ("SecretMissing", "SecretNotOffered"):
            raise Skip(Why.POOL_NOT_READY, f"pool {'/'.join(key)}: {condition.get('message', '')}")
