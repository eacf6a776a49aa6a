"""The ConfigMap that engines mount, and the hash that rolls them when what they read at their start changes."""

from __future__ import annotations

from kvpool_operator.desired import connectors, names
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.pool import Manifest, Pool

COMPONENT = "connector"


def config_hash(pool: Pool) -> str:
    """Changes with everything that an engine reads once, at its start.

    Raises:
        kvpool_connector.config.ConfigError: the connector would refuse what the spec asks for.
    """
    file = connectors.files(pool)
    return digest({"file": file, "seed": pool.material.seed_secret_uid, "password": pool.material.store_secret_uid})


def build(pool: Pool) -> list[Manifest]:
    """The ConfigMap; nothing for a type of connector that reads no file.

    Raises:
        kvpool_connector.config.ConfigError: as :func:`config_hash`.
    """
    content = connectors.files(pool)
    labels = names.labels(pool, COMPONENT)
    head = names.child(pool, "v1", "ConfigMap", names.connector(pool), labels)
    return [head | {"data": content}] if content else []
