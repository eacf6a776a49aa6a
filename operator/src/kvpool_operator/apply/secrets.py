"""Random values of a pool: made once, and only if the cluster has none.

Creation is a POST: two operators at once, or a stale view, can never overwrite a password that is
in use. There are two ways to another one: delete the Secret, or change ``password`` in it, as tools
that keep Secrets in step with a vault do. Nothing rolls by either. The store takes the new and the
former password over while it runs (``users.sh``), and engines read the new one from their mounted
file when they connect. The digest of the former one is read from the Secret with the users, which
is the operator's alone.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from kvpool_operator.apply.children import taken
from kvpool_operator.apply.compare import sign
from kvpool_operator.apply.owner import Owner
from kvpool_operator.desired import Manifest, Material, Pool, names, seed
from kvpool_operator.desired.names import COMPONENT_LABEL
from kvpool_operator.desired.stores import redis, sentinel
from kvpool_operator.kube import SECRET, Client, Conflict, NotFound, Refused
from kvpool_operator.observe.cache import Cache, owner_uid
from kvpool_operator.observe.secrets import decoded
from kvpool_operator.status.observed import Refusal


class SecretRefused(Exception):
    """A Secret of the pool cannot be had: a quota or a policy of the namespace, or another one has its name."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def new_password() -> str:
    return secrets.token_urlsafe(32)


def new_hash_seed() -> str:
    return str(secrets.randbelow(seed.MAXIMUM) + 1)


class SecretValues:
    """Fills a pool's ``Material`` from its Secrets, and makes those that are missing."""

    def __init__(self, client: Client, cache: Cache) -> None:
        self._client = client
        self._cache = cache

    async def fill(self, pool: Pool, owner: Owner, *, create: bool) -> Pool:
        """The pool with its random values.

        Args:
            create: make what is missing; otherwise leave it empty.

        Raises:
            SecretRefused: one that is missing must not be made, or somebody else's has its name.
            PoolGone: the pool was deleted meanwhile.
            ApiError: the API server did not answer.
        """
        if pool.spec.uses_sentinels:
            group_password, group_uid = await self._value(
                pool,
                owner,
                names.group_auth(pool),
                redis.PASSWORD_KEY,
                new_password,
                sentinel.build_group_secret,
                create=create,
            )
            pool = _with(pool, group_password=group_password, group_secret_uid=group_uid)
        password, password_uid = "", ""
        if pool.spec.managed_redis is not None:
            password, password_uid = await self._value(
                pool,
                owner,
                names.store_auth(pool),
                redis.PASSWORD_KEY,
                new_password,
                redis.build_auth_secret,
                create=create,
            )
            users = await self._users(pool)
            pool = _with(pool, former_digest=redis.former_digest(users, password))
        hash_seed, seed_uid = await self._value(
            pool, owner, names.hash_seed(pool), seed.KEY, new_hash_seed, seed.build_secret, create=create
        )
        return _with(
            pool,
            store_password=password,
            store_secret_uid=password_uid,
            hash_seed=hash_seed,
            seed_secret_uid=seed_uid,
        )

    async def _value(
        self,
        pool: Pool,
        owner: Owner,
        name: str,
        key: str,
        new: Callable[[], str],
        build: Callable[[Pool], Manifest | None],
        *,
        create: bool,
    ) -> tuple[str, str]:
        secret = await self._find(pool.namespace, name)
        if secret is not None and not decoded(secret, key) and create and owner_uid(secret) == pool.uid:
            # Emptied by hand: no Pod can start with it, so it is made anew.
            await self._client.delete(SECRET, pool.namespace, name, uid=secret["metadata"]["uid"])
            secret = None
        if secret is None:
            if not create:
                return "", ""
            await owner.confirm()
            value = new()
            manifest = build(_with(pool, store_password=value, hash_seed=value, group_password=value))
            assert manifest is not None  # noqa: S101  (the caller asks only for what the pool has)
            secret = await self._create(manifest)
        like = build(pool)
        assert like is not None  # noqa: S101  (as above)
        _refuse_foreign(pool, secret, like["metadata"]["labels"][COMPONENT_LABEL])
        return decoded(secret, key).strip(), str(secret["metadata"]["uid"])

    async def _users(self, pool: Pool) -> str:
        """Return the users of the store as they were last written; empty: they never were."""
        secret = await self._find(pool.namespace, names.store_users(pool))
        if secret is None:
            return ""
        _refuse_foreign(pool, secret, redis.COMPONENT)
        return decoded(secret, redis.ACL_KEY)

    async def _find(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """From the watch cache, else from the API server: a cache that is behind must not look like a missing Secret."""
        known = self._cache.get((SECRET.kind, namespace, name))
        if known is not None:
            return known
        try:
            return await self._client.get(SECRET, namespace, name)
        except NotFound:
            return None

    async def _create(self, manifest: Manifest) -> Mapping[str, Any]:
        """Create it, or return the one that came first."""
        metadata = manifest["metadata"]
        try:
            made = await self._client.create(SECRET, sign(manifest))
        except Conflict:
            return await self._client.get(SECRET, metadata["namespace"], metadata["name"])
        except Refused as error:
            component = metadata["labels"][COMPONENT_LABEL]
            raise SecretRefused(Refusal("Secret", metadata["name"], error.message, component)) from None
        self._cache.put(made)
        return made


def _refuse_foreign(pool: Pool, secret: Mapping[str, Any], component: str) -> None:
    """Refuse a Secret of somebody else's.

    Pods would mount it, and accepting namespaces get a copy: what it holds is not for them.
    """
    if owner_uid(secret) != pool.uid:
        name = str(secret["metadata"]["name"])
        raise SecretRefused(Refusal("Secret", name, taken(secret), component))


def _with(pool: Pool, **values: str) -> Pool:
    material: Material = dataclasses.replace(pool.material, **values)
    return dataclasses.replace(pool, material=material)
