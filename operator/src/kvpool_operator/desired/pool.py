"""The one argument of every builder: a pool, and what cannot be computed from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvpool_operator.api import KVCachePoolSpec, Settings

Manifest = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Material:
    """Random values of a pool. They are made once, live in Secrets, and are read back from there ever after.

    It has no ``repr`` of its content: a pool may end up in a log line, a password must not.
    """

    store_password: str
    hash_seed: str
    store_secret_uid: str = ""
    """Changes when the Secret was deleted and made again. Programs that keep a password need a restart then."""
    former_digest: str = ""
    """Of the store's password before somebody changed it in its Secret; empty: it is the first one. Both are valid until it is
    changed once more, since Pods see a changed Secret at different times."""
    seed_secret_uid: str = ""
    group_password: str = ""
    """Among servers of a fail-over group and their sentinels; engines don't have it."""
    group_secret_uid: str = ""
    external_username: str = ""
    """ACL user of an external store, from the user's Secret."""
    sentinel_username: str = ""
    """ACL user of external sentinels, from the user's Secret."""

    def __repr__(self) -> str:
        return "Material(…)"


@dataclass(frozen=True)
class Pool:
    """A KVCachePool as builders see it."""

    name: str
    namespace: str
    uid: str
    spec: KVCachePoolSpec
    material: Material
    settings: Settings = field(default_factory=Settings)
    shared_with: tuple[str, ...] = ()
    """Those of ``spec.injection.allowedNamespaces`` that say themselves that they take the pool."""
