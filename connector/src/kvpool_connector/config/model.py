"""The configuration file, as a model. Every field has a default that a small pool can live with, except what only
the user can know.

A change that an older connector would misread needs a new ``CONFIG_VERSION``; a new optional field does not.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kvpool_connector.config.remote import RemoteStore
from kvpool_connector.config.section import ByteSize, Section, WritePolicy

CONFIG_VERSION: Literal[1] = 1
"""What this connector writes and the newest version that it reads."""

EvictionPolicy = Literal["lru", "slru"]
OnFailure = Literal["stop", "continue"]


class PoolRef(Section):
    """Which KVCachePool this file was made for. Only shown, never part of a key."""

    name: str
    namespace: str = ""


class CpuTier(Section):
    """Host memory next to the engine."""

    size: ByteSize = Field(
        ge=1 << 20, le=1 << 50, description="Bytes for the whole engine, shared equally by its ranks."
    )
    eviction_policy: EvictionPolicy = Field(default="lru", description="Which block makes room for a new one.")


class DiskTier(Section):
    """Files next to the engine. They outlive the process, and the Pod if the volume does."""

    path: str = Field(
        min_length=1, description="A directory of this engine alone. An engine that restarts finds its blocks there."
    )
    size: ByteSize = Field(
        ge=1 << 20, le=1 << 60, description="Bytes for the whole engine, shared equally by its ranks; never exceeded."
    )
    eviction_policy: EvictionPolicy = Field(default="lru", description="Which block makes room for a new one.")
    write_policy: WritePolicy = Field(default="write_through", description="When a block is written to the disk.")


class Tiers(Section):
    """Tiers inside the engine's Pod."""

    cpu: CpuTier
    disk: DiskTier | None = Field(default=None, description="Absent: nothing outlives the process but the store.")


class ConnectorConfig(Section):
    """The whole file."""

    version: Literal[1] = CONFIG_VERSION
    pool: PoolRef | None = None
    tenant: str = Field(
        default="",
        max_length=63,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Part of every key: tenants never share blocks.",
    )
    model_revision: str | None = Field(
        default=None, description="Immutable revision of the weights; absent: the weights' files are fingerprinted."
    )
    tiers: Tiers
    remote: RemoteStore | None = Field(default=None, description="Absent: blocks live in this engine's tiers only.")
    chunk_tokens: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Tokens per stored part, a multiple of vLLM's block size; absent: chosen so that a part is 1-4 MiB.",
    )
    admission: Literal["measured", "always"] = Field(
        default="measured",
        description="Load from disk or store when measured to be faster than computing, or whenever there is a hit.",
    )
    verify_one_in: int | None = Field(
        default=None,
        ge=1,
        description="Of so many requests that hit, one is computed all the same and compared; a difference ends loading.",
    )
    on_failure: OnFailure = Field(
        default="stop",
        description="What a fault at start does: stop the engine, or let it run without the cache. Where the "
        "configuration itself cannot be read, KVPOOL_ON_FAILURE or kv_connector_extra_config.on_failure decides.",
    )
    offload_generated_tokens: bool = Field(
        True, description="Keep the KV of generated tokens too, so that the next turn of a conversation hits."
    )
