"""How much memory an engine needs next to the GPU, and whether its limit allows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvpool_connector.config import format_bytes, parse_quantity
from kvpool_operator.api import ConnectorType, Engine
from kvpool_operator.desired import connector_config
from kvpool_operator.desired.pool import Pool

OVERHEAD = 2 << 30
"""Python, torch, vLLM's processes and a small model's weights; measured with vLLM's CPU build, rounded up."""
KV_SPACE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
DEFAULT_KV_SPACE = "1"
"""GiB of vLLM's own KV cache on CPUs. vLLM's default is a share of the node, which several engines can't all have."""


@dataclass(frozen=True)
class Sum:
    """The memory of one engine, by part."""

    tier: int
    vllm: int
    kv_space: int

    @property
    def total(self) -> int:
        return self.tier + self.vllm + self.kv_space

    def __str__(self) -> str:
        parts = ((self.tier, "CPU tier"), (self.vllm, "vLLM"), (self.kv_space, "vLLM's own KV cache on CPU"))
        listed = " + ".join(f"{format_bytes(size)} {what}" for size, what in parts if size)
        return f"{listed} = {format_bytes(self.total)}"


def needed(pool: Pool, engine: Engine) -> Sum:
    """What this engine takes at least, apart from large weights on CPU."""
    kv_space = 0 if engine.gpus else _gibibytes(_variable(pool, engine, KV_SPACE_VARIABLE) or DEFAULT_KV_SPACE)
    return Sum(tier=_tier_in_engine(pool), vllm=OVERHEAD, kv_space=kv_space)


def _tier_in_engine(pool: Pool) -> int:
    """LMCache's server on the node holds the tier of all engines there; any other connector holds it in the engine."""
    return 0 if pool.spec.connector.type is ConnectorType.LMCACHE_MP else connector_config.cpu_tier_bytes(pool)


def memory_limit(limits: Mapping[str, Any] | None) -> int | None:
    """A container's limit in bytes, if there is one that is a size."""
    limit = (limits or {}).get("memory")
    if limit is None:
        return None
    try:
        return parse_quantity(str(limit))
    except ValueError:  # thousandths of a byte: legal, and nobody's sizing mistake
        return None


def _variable(pool: Pool, engine: Engine, name: str) -> str | None:
    """The value that the container will see: the pool's wins over the operator's."""
    for variable in engine.env:
        if variable.name == name:
            return variable.value
    for default in pool.settings.engine_defaults.env:
        if default.get("name") == name:
            return default.get("value")
    return None


def _gibibytes(text: str) -> int:
    """vLLM reads whole gibibytes; anything else is vLLM's to complain about."""
    return int(text) << 30 if text.isdecimal() else 0


def quantity(count: int) -> str:
    """The size as Kubernetes would print it, so that what is applied and what is read back are the same."""
    for unit, factor in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)
