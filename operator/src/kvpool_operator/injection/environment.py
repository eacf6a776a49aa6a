"""What a container's environment says after injection. vLLM's arguments are decided on in the engine,
where they are parsed: see docs/adr/0016."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_connector.config import ENV_CONFIG_FILE, ENV_CONFLICT_POLICY, ENV_ON_FAILURE
from kvpool_operator.desired import connector_config, payload, seed
from kvpool_operator.desired.podpatch import merge_list
from kvpool_operator.injection.facts import Facts

Json = dict[str, Any]
CONFIG_FILE = f"{connector_config.DIRECTORY}/{connector_config.FILE}"
SEED = "PYTHONHASHSEED"


def extended(container: Mapping[str, Any], facts: Facts, *, brings_payload: bool) -> list[Json]:
    """Return the container's variables with kvpool's among them.

    A hash seed of the user's is replaced: with another one no block of the pool would ever be found.
    """
    reference = {"name": facts.seed_secret, "key": seed.KEY, "optional": True}
    added: list[Json] = [
        {"name": ENV_CONFIG_FILE, "value": CONFIG_FILE},
        {"name": ENV_CONFLICT_POLICY, "value": str(facts.conflict_policy)},
        {"name": SEED, "valueFrom": {"secretKeyRef": reference}},
    ]
    if ENV_ON_FAILURE not in variables(container):
        added.append({"name": ENV_ON_FAILURE, "value": "continue"})
    together = merge_list(container.get("env") or (), added, "name")
    return payload.on_path({**container, "env": together}) if brings_payload else together


def variables(container: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the entries of ``env`` by name. Of two with a name the last one counts."""
    return {one["name"]: one for one in container.get("env") or ()}
