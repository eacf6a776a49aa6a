"""The configuration file, as a model. Every field has a default that a small pool can live with, except what only
the user can know.

A change that an older connector would misread needs a new ``CONFIG_VERSION``; a new optional field does not.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kvpool_connector.config.quantity import parse_quantity

CONFIG_VERSION: Literal[1] = 1
"""What this connector writes and the newest version that it reads."""

EvictionPolicy = Literal["lru", "slru"]
WritePolicy = Literal["write_through", "write_back", "selective"]
"""At once; when memory needs the room; or when a block is seen for the second time."""
OnFailure = Literal["stop", "continue"]
ByteSize = Annotated[int, BeforeValidator(parse_quantity)]
"""Bytes; read from a number or a Kubernetes quantity."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolRef(_Section):
    """Which KVCachePool this file was made for. Only shown, never part of a key."""

    name: str
    namespace: str = ""


class CpuTier(_Section):
    """Host memory next to the engine."""

    size: ByteSize = Field(
        ge=1 << 20, le=1 << 50, description="Bytes for the whole engine, shared equally by its ranks."
    )
    eviction_policy: EvictionPolicy = Field(default="lru", description="Which block makes room for a new one.")


class DiskTier(_Section):
    """Files next to the engine. They outlive the process, and the Pod if the volume does."""

    path: str = Field(
        min_length=1, description="A directory of this engine alone. An engine that restarts finds its blocks there."
    )
    size: ByteSize = Field(
        ge=1 << 20, le=1 << 60, description="Bytes for the whole engine, shared equally by its ranks; never exceeded."
    )
    eviction_policy: EvictionPolicy = Field(default="lru", description="Which block makes room for a new one.")
    write_policy: WritePolicy = Field(default="write_through", description="When a block is written to the disk.")


class Tiers(_Section):
    """Tiers inside the engine's Pod."""

    cpu: CpuTier
    disk: DiskTier | None = Field(default=None, description="Absent: nothing outlives the process but the store.")


class Timeouts(_Section):
    """Upper bounds, in milliseconds, on anything that waits for the store. What is late is a miss, never an error."""

    lookup_ms: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Whether the store has the keys of a waiting request. A long prompt is given up to 5 % of what "
        "computing it would take, if that is longer.",
    )
    fetch_ms: int = Field(default=5_000, ge=10, le=120_000, description="One load's reads, all keys together.")
    put_ms: int = Field(default=10_000, ge=10, le=120_000, description="One store's writes, all keys together.")
    connect_ms: int = Field(default=3_000, ge=10, le=30_000, description="TCP connection and authentication.")


class RemoteStore(_Section):
    """A store that engines share. Redis and Valkey speak the same protocol."""

    type: Literal["redis", "valkey"]
    host: str = Field(min_length=1, max_length=253)
    port: int = Field(default=6379, ge=1, le=65535)
    database: int = Field(default=0, ge=0, le=1_000_000)
    username: str | None = Field(default=None, description="ACL user; absent: the default user.")
    password_file: str | None = Field(
        default=None, description="A file that holds the password (a mounted Secret). Passwords are never in this file."
    )
    ttl_s: int | None = Field(
        default=None, ge=1, description="Seconds after which the store may forget a part; absent: never."
    )
    write_policy: WritePolicy = Field(default="write_through", description="When a block is written to the store.")
    timeouts: Timeouts = Timeouts()


class ConnectorConfig(_Section):
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

    @model_validator(mode="after")
    def _username_needs_password(self) -> ConnectorConfig:
        if self.remote is not None and self.remote.username and not self.remote.password_file:
            raise ValueError("remote.username is set without remote.password_file: name the file with its password")
        return self
