"""The connector's files: for the pool's own engines in their Pods, for consumers in a ConfigMap.

An engine's Pod carries the files as annotations and mounts these (downward API). So each Pod has
the configuration that it was made with for as long as it lives, also when its container starts
again after the pool's configuration has changed: an older connector never meets a newer file.
"""

from __future__ import annotations

from kvpool_operator.api import GROUP
from kvpool_operator.desired import connectors, names
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.pool import Manifest, Pool

COMPONENT = "connector"
VOLUME = "config"


def config_hash(pool: Pool) -> str:
    """Changes with everything that an engine reads once, at its start.

    Raises:
        kvpool_connector.config.ConfigError: the connector would refuse what the spec asks for.
    """
    read = {"file": connectors.files(pool), "seed": pool.material.seed_secret_uid}
    if connectors.keeps_password(pool):
        read["password"] = pool.material.store_secret_uid
    return digest(read)


def as_annotations(pool: Pool) -> dict[str, str]:
    """Return the files as annotations of an engine's Pod.

    Raises:
        kvpool_connector.config.ConfigError: as :func:`config_hash`.
    """
    return {_annotation(name): text for name, text in connectors.files(pool).items()}


def volumes(pool: Pool) -> list[Manifest]:
    """Return the volume that has these annotations as files; none where there are no files.

    Raises:
        kvpool_connector.config.ConfigError: as :func:`config_hash`.
    """
    items = [
        {"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['{_annotation(name)}']"}}
        for name in connectors.files(pool)
    ]
    return [{"name": VOLUME, "downwardAPI": {"items": items}}] if items else []


def _annotation(file: str) -> str:
    return f"{GROUP}/{file}"


def build(pool: Pool) -> list[Manifest]:
    """Return the ConfigMap for consumers; nothing for a type of connector that reads no file.

    Raises:
        kvpool_connector.config.ConfigError: as :func:`config_hash`.
    """
    content = connectors.files(pool)
    labels = names.labels(pool, COMPONENT)
    head = names.child(pool, "v1", "ConfigMap", names.connector(pool), labels)
    return [head | {"data": content}] if content else []
