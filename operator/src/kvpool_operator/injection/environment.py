"""What a container's environment says after injection. vLLM's arguments are decided on in the engine,
where they are parsed: see docs/adr/0016."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvpool_connector.config import ENV_CONFIG_FILE, ENV_CONFLICT_POLICY, ENV_ON_FAILURE
from kvpool_operator.desired import connector_config, seed
from kvpool_operator.desired.podpatch import merge_list
from kvpool_operator.injection import names
from kvpool_operator.injection.facts import Facts

Json = dict[str, Any]
CONFIG_FILE = f"{connector_config.DIRECTORY}/{connector_config.FILE}"
SEED = "PYTHONHASHSEED"
_PYTHON_PATH = "PYTHONPATH"
_KEPT_PATH = "KVPOOL_KEPT_PYTHONPATH"
"""A ``PYTHONPATH`` that comes from another object goes by this name, and ours refers to it."""


def extended(container: Mapping[str, Any], facts: Facts, *, brings_payload: bool) -> list[Json]:
    """Return the container's variables with kvpool's among them.

    A hash seed of the user's is replaced: with another one no block of the pool would ever be found.
    """
    own = variables(container)
    reference = {"name": facts.seed_secret, "key": seed.KEY, "optional": True}
    added: list[Json] = [
        {"name": ENV_CONFIG_FILE, "value": CONFIG_FILE},
        {"name": ENV_CONFLICT_POLICY, "value": str(facts.conflict_policy)},
        {"name": SEED, "valueFrom": {"secretKeyRef": reference}},
    ]
    if ENV_ON_FAILURE not in own:
        added.append({"name": ENV_ON_FAILURE, "value": "continue"})
    given: Sequence[Mapping[str, Any]] = container.get("env") or ()
    if brings_payload:
        kept = own.get(_PYTHON_PATH, {})
        if "valueFrom" in kept:
            given = [one if one is not kept else {**kept, "name": _KEPT_PATH} for one in given]
        added.append({"name": _PYTHON_PATH, "value": _python_path(container, kept)})
    return merge_list(given, added, "name")


def variables(container: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the entries of ``env`` by name. Of two with a name the last one counts."""
    return {one["name"]: one for one in container.get("env") or ()}


def _python_path(container: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return a path that ends with ours: a package of the image or the user must never be hidden.

    The kubelet fills in ``$(NAME)`` from ``envFrom`` and from entries of ``env`` that come before,
    also in the entry that has that name itself (``makeEnvironmentVariables`` in its
    ``kubelet_pods.go``). What it finds nowhere it leaves as it is, and Python passes over a folder
    that is not there.
    """
    if "valueFrom" in own:
        before = f"$({_KEPT_PATH})"
    elif own:
        before = str(own.get("value") or "")
    else:
        before = f"$({_PYTHON_PATH})" if _may_come_from_elsewhere(container) else ""
    if names.PAYLOAD_DIRECTORY in before.split(":"):
        return before
    return f"{before}:{names.PAYLOAD_DIRECTORY}" if before else names.PAYLOAD_DIRECTORY


def _may_come_from_elsewhere(container: Mapping[str, Any]) -> bool:
    return any(_PYTHON_PATH.startswith(source.get("prefix") or "") for source in container.get("envFrom") or ())
