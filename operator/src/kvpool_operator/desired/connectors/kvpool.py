"""kvpool's own connector, alone or as the first child of vLLM's MultiConnector."""

from __future__ import annotations

from typing import Any

from kvpool_connector.config import ENV_CONFIG_FILE
from kvpool_operator.api import Engine, Role, Transport
from kvpool_operator.desired import connector_config
from kvpool_operator.desired.connectors.part import EnginePart
from kvpool_operator.desired.pool import Manifest, Pool

KV_TRANSFER = {
    "kv_connector": "KVPoolConnector",
    "kv_connector_module_path": "kvpool_connector.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
KV_ROLES = {Role.BOTH: "kv_both", Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}


def engine_part(pool: Pool, engine: Engine) -> EnginePart:
    """Return what kvpool's connector adds.

    An engine without a role or a transport is like a user's: the environment switches kvpool on, and
    it decides on parsed arguments (docs/adr/0016). A role has to be said in an argument. With NIXL,
    peers are told under which address they reach this Pod.
    """
    environment: list[Manifest] = [
        {"name": ENV_CONFIG_FILE, "value": f"{connector_config.DIRECTORY}/{connector_config.FILE}"}
    ]
    if pool.spec.connector.transport is Transport.NIXL:
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        environment.append({"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": address})
    return EnginePart(_transfer(pool, engine), environment)


def _transfer(pool: Pool, engine: Engine) -> dict[str, Any] | None:
    """With transport Pool the role is the connector's own; with NIXL the transport has it, and each engine keeps its cache.

    The pool comes first: MultiConnector loads from the first child that has something, so a whole prompt that the pool holds
    is not fetched from another engine.
    """
    role = KV_ROLES[engine.role]
    if pool.spec.connector.transport is not Transport.NIXL:
        return None if engine.role is Role.BOTH else KV_TRANSFER | {"kv_role": role}
    nixl: dict[str, Any] = {
        "kv_connector": "NixlConnector",
        "kv_role": role,
        "kv_connector_extra_config": {"backends": ["UCX"]},
    }
    if engine.gpus == 0:
        nixl["kv_buffer_device"] = "cpu"
    return {
        "kv_connector": "MultiConnector",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [KV_TRANSFER, nixl]},
    }
