"""The shared store, as a part of the configuration file: one model for each kind, told apart by ``type``.

Passwords are never in the file: only the paths of files that hold them (mounted Secrets).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kvpool_connector.config.section import ByteSize, Section, WritePolicy

Host = Annotated[str, Field(min_length=1, max_length=253)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Timeouts(Section):
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
    stall_ms: int = Field(
        default=250,
        ge=10,
        le=30_000,
        description="Redis, Valkey, LMCache's server: one that sends no byte for so long is given "
        "up, and left alone for a while. Longer than its round trip. Writes have put_ms.",
    )
    handover_ms: int = Field(
        default=1_000,
        ge=1,
        le=60_000,
        description="Decode engines (kv_role kv_consumer): how long a request waits for what its prefill engine is writing.",
    )


class _Remote(Section):
    write_policy: WritePolicy = Field(default="write_through", description="When a block is written to the store.")
    timeouts: Timeouts = Timeouts()


class Credentials(Section):
    """How to authenticate to a server of the Redis family."""

    username: str | None = Field(default=None, description="ACL user; absent: the default user.")
    password_file: str | None = Field(
        default=None, description="A file that holds the password (a mounted Secret). Passwords are never in this file."
    )

    @model_validator(mode="after")
    def _username_needs_password(self) -> Credentials:
        if self.username and not self.password_file:
            raise ValueError("username is set without password_file: name the file with its password")
        return self


class Address(Section):
    """One TCP endpoint."""

    host: Host
    port: Port

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Sentinel(Credentials):
    """Sentinels that know which server is the primary. The credentials are the sentinels' own."""

    master_name: str = Field(
        min_length=1, max_length=253, description="What the sentinels call the primary: the name in sentinel.conf."
    )
    endpoints: tuple[Address, ...] = Field(
        min_length=1, max_length=16, description="Any of them may be asked; the first that answers is believed."
    )


class RedisRemote(_Remote, Credentials):
    """Redis and Valkey speak the same protocol. A lone server by ``host``, or a fail-over group by ``sentinel``."""

    type: Literal["redis", "valkey"]
    host: Host | None = None
    port: Port = 6379
    sentinel: Sentinel | None = Field(
        default=None, description="In place of 'host': the primary is asked for at each connection."
    )
    database: int = Field(default=0, ge=0, le=1_000_000)
    ttl_s: int | None = Field(
        default=None, ge=1, description="Seconds after which the store may forget a part; absent: never."
    )

    @model_validator(mode="after")
    def _one_address(self) -> RedisRemote:
        if (self.host is None) == (self.sentinel is None):
            raise ValueError("exactly one of host and sentinel is needed")
        return self

    @property
    def where(self) -> str:
        """For people; no credentials."""
        if self.sentinel is None:
            return f"{self.type} at {self.host}:{self.port}"
        sentinels = ", ".join(map(str, self.sentinel.endpoints))
        return f"{self.type}, the primary of {self.sentinel.master_name} by the sentinels {sentinels}"


class LMCacheRemote(_Remote):
    """``lmcache_server``: a dictionary behind TCP, without eviction, replication or authentication."""

    type: Literal["lmcache"]
    host: Host
    port: Port = 65432

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.type} at {self.host}:{self.port}"


class MooncakeRemote(_Remote):
    """A Mooncake store. Its client is the package mooncake-transfer-engine, which the engine's image must have."""

    type: Literal["mooncake"]
    master: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^(etcd://)?[A-Za-z0-9._:;\[\]-]+$",
        description="The master as host:port, or etcd://host:port;host:port to find the leader of several.",
    )
    metadata_server: str = Field(
        default="P2PHANDSHAKE",
        max_length=1024,
        pattern=r"^(P2PHANDSHAKE|(etcd|http|https)://[^\s@]+)$",
        description="Where clients find each other; P2PHANDSHAKE needs no server.",
    )
    protocol: Literal["tcp", "rdma"] = Field(default="tcp", description="rdma needs RDMA devices in the container.")
    devices: str = Field(default="", max_length=253, description="RDMA devices, separated by commas; absent: all.")
    local_host: Host | None = Field(
        default=None, description="Address under which others reach this engine; absent: that of the way to the master."
    )
    segment_size: ByteSize = Field(
        default=0, ge=0, le=1 << 46, description="Bytes of each engine process that the pool may use for others."
    )
    replicas: int = Field(default=1, ge=1, le=8, description="Copies of each part.")

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.type} at {self.master} over {self.protocol}"


class InfiniStoreRemote(_Remote):
    """InfiniStore, over RDMA. Experimental: its client is the package infinistore, which needs RDMA devices."""

    type: Literal["infinistore"]
    experimental: Literal[True] = Field(description="Must be true: nobody could test this without RDMA devices.")
    host: Host
    port: Port = 22345
    device: str = Field(default="", max_length=63, description="RDMA device; absent: the first one.")
    link_type: Literal["Ethernet", "IB"] = Field(default="Ethernet", description="RoCE or InfiniBand.")

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.type} at {self.host}:{self.port}"


RemoteStore = Annotated[RedisRemote | LMCacheRemote | MooncakeRemote | InfiniStoreRemote, Field(discriminator="type")]
"""A store that engines share."""
