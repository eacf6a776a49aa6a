"""vLLM's own offloading: a memory tier in each engine, nothing shared. Source: vllm/v1/kv_offload of vLLM 0.32."""

from __future__ import annotations

from kvpool_operator.desired import connector_config
from kvpool_operator.desired.connectors.part import EnginePart
from kvpool_operator.desired.pool import Pool


def engine_part(pool: Pool) -> EnginePart:
    """The size is of the whole engine, all ranks together."""
    return EnginePart(
        {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"cpu_bytes_to_use": connector_config.cpu_tier_bytes(pool)},
        }
    )
