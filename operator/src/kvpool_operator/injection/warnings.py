"""What the owner of a Pod should know of an injection that changes more than the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_connector.names import CONNECTOR
from kvpool_operator.desired.sizing import quantity
from kvpool_operator.injection import environment
from kvpool_operator.injection.facts import Facts

LARGE = 16 << 30
"""Bytes of tiers that make a start longer by seconds: memory is pinned and a slab allocated before
vLLM answers a probe."""
_SHOWN = 40
_PLUG_INS = "VLLM_PLUGINS"


def of(container: Mapping[str, Any], facts: Facts) -> tuple[str, ...]:
    """Return a sentence for each thing that may need a hand, with the way out."""
    found = (_replaced_seed(container, facts), _left_out(container), _slow_start(container, facts))
    return tuple(text for text in found if text is not None)


def _replaced_seed(container: Mapping[str, Any], facts: Facts) -> str | None:
    """Routers that hash prompts to find the engine that holds them use the engines' seed."""
    value = environment.variables(container).get(environment.SEED, {}).get("value")
    if value is None:
        return None
    return (
        f"{environment.SEED}={str(value)[:_SHOWN]} is replaced by the pool's: a router that hashes prefixes needs the "
        f"same one, key seed of Secret {facts.seed_secret}"
    )


def _left_out(container: Mapping[str, Any]) -> str | None:
    """vLLM loads only the plug-ins that this variable names, if it is there (``vllm/plugins``, 0.32)."""
    named = environment.variables(container).get(_PLUG_INS, {}).get("value")
    if named is None or CONNECTOR in str(named).split(","):
        return None
    return f"{_PLUG_INS} keeps vLLM from loading kvpool's plug-in: add {CONNECTOR} to it"


def _slow_start(container: Mapping[str, Any], facts: Facts) -> str | None:
    size = facts.cpu_tier + facts.disk
    if size < LARGE or "livenessProbe" not in container or "startupProbe" in container:
        return None
    return (
        f"tiers of {quantity(size)} are made before vLLM answers, and container {container['name']} has a "
        "livenessProbe without a startupProbe: add one, or the start may be taken for a hang"
    )
