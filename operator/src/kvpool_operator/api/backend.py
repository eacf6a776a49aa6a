"""``spec.backend``: the store that engines share. Its ``type`` chooses the store; the rules say which other fields it takes."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from kvpool_connector.config import parse_quantity
from kvpool_operator.api.external import External
from kvpool_operator.api.sections import Resources, StoreSize
from kvpool_operator.api.stores import Etcd, InfiniStore, Mooncake, Sentinel
from kvpool_operator.api.types import ApiModel, Rule


class StoreType(enum.StrEnum):
    """What engines share."""

    REDIS = "Redis"
    VALKEY = "Valkey"
    MOONCAKE = "Mooncake"
    LMCACHE_SERVER = "LMCacheServer"
    INFINISTORE = "InfiniStore"
    NONE = "None"


REDIS_FAMILY = (StoreType.REDIS, StoreType.VALKEY)
WritePolicy = Literal["WriteThrough", "WriteBack", "Selective"]

_IS_REDIS = "(self.type == 'Redis' || self.type == 'Valkey')"
_EXTERNAL = "has(self.external)"


def _not_both(field: str) -> Rule:
    return Rule(
        cel=f"!({_EXTERNAL} && has(self.{field}))",
        message=f"spec.backend.{field} belongs to a store that kvpool runs, spec.backend.external to one that you run: "
        "remove one of the two",
        holds=lambda self: self.external is None or getattr(self, field) is None,
        field_path=f".{field}",
    )


def _only_for(field: str, types: tuple[StoreType, ...]) -> Rule:
    """A field that other kinds of stores don't have. None has nothing at all, which is a rule of its own."""
    words = " and ".join(types)
    allowed = " || ".join(f"self.type == '{kind}'" for kind in (*types, StoreType.NONE))
    return Rule(
        cel=f"!has(self.{field}) || {allowed}",
        message=f"spec.backend.{field} is for {words} only: remove it, or change spec.backend.type",
        holds=lambda self: getattr(self, field) is None or self.type in (*types, StoreType.NONE),
        field_path=f".{field}",
    )


def _external_has(field: str, name: str, types: tuple[StoreType, ...]) -> Rule:
    words = " and ".join(types)
    allowed = " || ".join(f"self.type == '{kind}'" for kind in (*types, StoreType.NONE))
    return Rule(
        cel=f"!{_EXTERNAL} || !has(self.external.{field}) || {allowed}",
        message=f"spec.backend.external.{field} is for {words} only: remove it, or change spec.backend.type",
        holds=lambda self: (
            self.external is None or getattr(self.external, name) is None or self.type in (*types, StoreType.NONE)
        ),
        field_path=".external",
    )


def _rule(cel: str, message: str, holds: Callable[[Any], bool], field_path: str) -> Rule:
    return Rule(cel=cel, message=message, holds=holds, field_path=field_path)


class Backend(ApiModel):
    """The store that engines share: run by kvpool, or ``external``."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _not_both("memory"),
        _not_both("image"),
        _not_both("resources"),
        _not_both("eviction"),
        _not_both("sentinel"),
        _rule(
            "self.type != 'None' || !(has(self.external) || has(self.memory) || has(self.image) || has(self.resources) || "
            "has(self.eviction) || has(self.mode) || has(self.writePolicy) || has(self.sentinel) || has(self.mooncake) || "
            "has(self.etcd) || has(self.infinistore))",
            "spec.backend.type is None, so spec.backend must have no other field: "
            "set the type to Redis or Valkey, or remove the rest",
            lambda self: self.type is not StoreType.NONE or self.is_bare,
            ".type",
        ),
        _only_for("mode", REDIS_FAMILY),
        _only_for("eviction", REDIS_FAMILY),
        _only_for("sentinel", REDIS_FAMILY),
        _only_for("mooncake", (StoreType.MOONCAKE,)),
        _only_for("etcd", (StoreType.MOONCAKE,)),
        _only_for("infinistore", (StoreType.INFINISTORE,)),
        _external_has("database", "database", REDIS_FAMILY),
        _external_has("auth", "auth", REDIS_FAMILY),
        _external_has("sentinel", "sentinel", REDIS_FAMILY),
        _external_has("master", "master", (StoreType.MOONCAKE,)),
        _external_has("metadataServer", "metadata_server", (StoreType.MOONCAKE,)),
        _rule(
            f"!{_EXTERNAL} || !{_IS_REDIS} || has(self.external.host) != has(self.external.sentinel)",
            "spec.backend.external needs exactly one of host and sentinel: set external.host to the server, or "
            "external.sentinel to the sentinels that know it",
            lambda self: (
                self.external is None
                or self.type not in REDIS_FAMILY
                or (self.external.host is None) != (self.external.sentinel is None)
            ),
            ".external",
        ),
        _rule(
            f"!{_EXTERNAL} || !(has(self.external.sentinel) && has(self.external.port))",
            "spec.backend.external.port belongs to external.host: with external.sentinel the sentinels tell the port; remove it",
            lambda self: self.external is None or self.external.sentinel is None or self.external.port is None,
            ".external",
        ),
        _rule(
            f"!{_EXTERNAL} || self.type != 'Mooncake' || (has(self.external.master) && !has(self.external.host) && "
            "!has(self.external.port))",
            "spec.backend.external of a Mooncake store needs master, and neither host nor port: "
            "set external.master to host:port of the master",
            lambda self: (
                self.external is None
                or self.type is not StoreType.MOONCAKE
                or (bool(self.external.master) and self.external.host is None and self.external.port is None)
            ),
            ".external",
        ),
        _rule(
            f"!{_EXTERNAL} || !(self.type == 'LMCacheServer' || self.type == 'InfiniStore') || has(self.external.host)",
            "spec.backend.external.host is missing: set it to the host name of the server",
            lambda self: (
                self.external is None
                or self.type not in (StoreType.LMCACHE_SERVER, StoreType.INFINISTORE)
                or self.external.host is not None
            ),
            ".external",
        ),
        _rule(
            f"!has(self.mode) || !{_EXTERNAL} || (self.mode == 'Sentinel') == has(self.external.sentinel)",
            "spec.backend.mode and spec.backend.external say different things: with mode Sentinel set external.sentinel, "
            "with mode Standalone set external.host",
            lambda self: (
                self.mode is None
                or self.external is None
                or (self.mode == "Sentinel") == (self.external.sentinel is not None)
            ),
            ".mode",
        ),
        _rule(
            f"!has(self.sentinel) || {_EXTERNAL} || (has(self.mode) && self.mode == 'Sentinel')",
            "spec.backend.sentinel is set but no sentinels are run: set spec.backend.mode to Sentinel, or remove it",
            lambda self: self.sentinel is None or self.external is not None or self.mode == "Sentinel",
            ".sentinel",
        ),
        _rule(
            "!has(self.etcd) || (has(self.mooncake) && ((has(self.mooncake.ha) && self.mooncake.ha) || "
            "(has(self.mooncake.metadata) && self.mooncake.metadata == 'Etcd')))",
            "spec.backend.etcd is set but nothing uses it: set spec.backend.mooncake.ha to true or "
            "spec.backend.mooncake.metadata to Etcd, or remove it",
            lambda self: self.etcd is None or bool(self.mooncake and self.mooncake.needs_etcd),
            ".etcd",
        ),
        _rule(
            f"!{_EXTERNAL} || !has(self.mooncake) || !(has(self.mooncake.ha) || has(self.mooncake.replicas) || "
            "has(self.mooncake.metadata))",
            "spec.backend.mooncake.ha, replicas and metadata belong to a store that kvpool runs: remove them, or "
            "remove spec.backend.external",
            lambda self: (
                self.external is None
                or self.mooncake is None
                or (self.mooncake.ha, self.mooncake.replicas, self.mooncake.metadata) == (None, None, None)
            ),
            ".mooncake",
        ),
        _rule(
            "self.type != 'Mooncake' || !has(self.memory) || !isQuantity(self.memory) || "
            "quantity(self.memory).compareTo(quantity('256Mi')) >= 0",
            "spec.backend.memory is too little for a Mooncake store, whose buffers alone take 80Mi: set it to 256Mi or more",
            lambda self: (
                self.type is not StoreType.MOONCAKE
                or self.memory is None
                or parse_quantity(self.memory) >= parse_quantity("256Mi")
            ),
            ".memory",
        ),
        _rule(
            "self.type != 'InfiniStore' || (has(self.infinistore) && has(self.infinistore.experimental) && "
            "self.infinistore.experimental)",
            "spec.backend.type InfiniStore was never run by kvpool's authors, who have no RDMA devices: to use it all the same "
            "set spec.backend.infinistore.experimental to true",
            lambda self: (
                self.type is not StoreType.INFINISTORE or bool(self.infinistore and self.infinistore.experimental)
            ),
            ".infinistore",
        ),
        _rule(
            "self.type != 'InfiniStore' || !has(self.infinistore) || has(self.infinistore.rdmaResource)",
            "spec.backend.infinistore.rdmaResource is missing: InfiniStore crashes without RDMA devices; set it to the resource "
            "that your RDMA device plugin offers, such as rdma/hca_shared_devices_a",
            lambda self: (
                self.type is not StoreType.INFINISTORE
                or self.infinistore is None
                or self.infinistore.rdma_resource is not None
            ),
            ".infinistore",
        ),
        _rule(
            f"self.type != 'InfiniStore' || {_EXTERNAL} || has(self.image)",
            "spec.backend.image is missing: InfiniStore has no official image; build one with the package infinistore and set it",
            lambda self: self.type is not StoreType.INFINISTORE or self.external is not None or self.image is not None,
            ".image",
        ),
    )

    type: StoreType = Field(
        StoreType.VALKEY, description="Which store; docs/stores.md compares them. None: engines share nothing."
    )
    mode: Literal["Standalone", "Sentinel"] | None = Field(
        None,
        description="Redis, Valkey: one server (default), or three with three sentinels, which replace a lost primary.",
    )
    memory: StoreSize | None = Field(
        None,
        description="Memory limit of each server of the store that kvpool runs (default 1Gi); most of it holds blocks.",
    )
    eviction: Literal["allkeys-lru", "allkeys-lfu", "allkeys-random"] | None = Field(
        None, description="Redis, Valkey: which blocks a full store drops (default allkeys-lru)."
    )
    write_policy: WritePolicy | None = Field(
        None,
        description="When engines write a block to the store: at once (default), when their memory needs the room, or when a "
        "block is seen for the second time.",
    )
    image: str | None = Field(
        None, min_length=1, max_length=512, description="Image of the store; absent: the operator's default."
    )
    resources: Resources | None = Field(
        None, description="CPU and further resources of the store; its memory comes from 'memory'."
    )
    sentinel: Sentinel | None = Field(None, description="Redis, Valkey with mode Sentinel: when a primary is lost.")
    mooncake: Mooncake | None = Field(None, description="Mooncake alone; absent: one master, one store, TCP.")
    etcd: Etcd | None = Field(None, description="Mooncake with ha or metadata Etcd; absent: kvpool runs three members.")
    infinistore: InfiniStore | None = Field(None, description="InfiniStore alone.")
    external: External | None = Field(None, description="Use this store instead of running one.")

    @property
    def is_bare(self) -> bool:
        """Nothing but the type is set."""
        return not self.model_dump(exclude_none=True, exclude={"type"})

    @property
    def is_redis(self) -> bool:
        return self.type in REDIS_FAMILY
