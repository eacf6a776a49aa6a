"""``spec.tiers`` and ``spec.connector``: where an engine keeps blocks of its own, and how the connector behaves."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from kvpool_operator.api.backend import WritePolicy
from kvpool_operator.api.connector_types import ConnectorChoice
from kvpool_operator.api.object_names import ObjectName, OptionalName
from kvpool_operator.api.sections import TierSize
from kvpool_operator.api.types import FREE_FORM, ApiModel, Rule

EvictionPolicy = Literal["LRU", "SLRU"]


class CpuTier(ApiModel):
    """Host memory inside each engine's Pod."""

    size: TierSize = Field(description="Memory per engine replica for KV blocks.")
    eviction_policy: EvictionPolicy | None = Field(
        None,
        description="Which block makes room: the one used least recently (default), or what one request alone used.",
    )


class Claim(ApiModel):
    """A PersistentVolumeClaim: one for each replica, made by kvpool, or one that you made."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(has(self.claimName) && has(self.storageClassName))",
            message="spec.tiers.disk.volume.persistentVolumeClaim has claimName and storageClassName: name your own claim, or "
            "the class of claims that kvpool makes; remove one",
            holds=lambda self: self.claim_name is None or self.storage_class_name is None,
            field_path=".claimName",
        ),
    )

    storage_class_name: OptionalName | None = Field(
        None, description="StorageClass of claims that kvpool makes; absent: the cluster's default."
    )
    claim_name: ObjectName | None = Field(
        None,
        description="Your own claim; each replica uses a folder of it, so replicas on several nodes need ReadWriteMany.",
    )


class DiskVolume(ApiModel):
    """Where the files of a disk tier are."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.emptyDir) != has(self.persistentVolumeClaim)",
            message="spec.tiers.disk.volume needs exactly one of emptyDir and persistentVolumeClaim: emptyDir ends with the Pod, "
            "persistentVolumeClaim outlives it",
            holds=lambda self: (self.empty_dir is None) != (self.persistent_volume_claim is None),
        ),
    )

    empty_dir: dict[str, Any] | None = Field(
        None,
        description="As in a Pod; {} is enough. Ends with the Pod, survives restarts of its containers.",
        json_schema_extra=FREE_FORM,
    )
    persistent_volume_claim: Claim | None = Field(None, description="Outlives the Pod.")


class DiskTier(ApiModel):
    """Files next to each engine."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(has(self.path) && has(self.volume))",
            message="spec.tiers.disk has path and volume: path is a directory that your podTemplate mounts, volume is mounted by "
            "kvpool; remove one of the two",
            holds=lambda self: self.path is None or self.volume is None,
            field_path=".path",
        ),
    )

    size: TierSize = Field(description="Bytes per engine replica; never exceeded.")
    path: str | None = Field(
        None,
        max_length=1024,
        pattern=r"^/[^:]*$",
        description="A directory of each Pod alone that spec.engines[].podTemplate mounts, instead of volume.",
    )
    volume: DiskVolume | None = Field(None, description="What kvpool mounts; absent: an emptyDir.")
    eviction_policy: EvictionPolicy | None = Field(None, description="As in tiers.cpu.")
    write_policy: WritePolicy | None = Field(None, description="When a block is written to the disk.")

    @property
    def claim(self) -> Claim | None:
        """The claim that the files are in; None: they end with the Pod, or are the user's affair."""
        return self.volume.persistent_volume_claim if self.volume else None


class Tiers(ApiModel):
    """Where an engine keeps blocks of its own."""

    cpu: CpuTier | None = Field(None, description="Memory next to the engine: the fastest place after the GPU.")
    disk: DiskTier | None = Field(None, description="Files next to the engine: slower, larger, and kept at a restart.")


class ConnectorTimeouts(ApiModel):
    """Upper bounds in milliseconds; whatever is late is recomputed."""

    lookup_ms: int | None = Field(None, ge=1, le=10_000, description="Asking the store which blocks it has.")
    fetch_ms: int | None = Field(None, ge=10, le=120_000, description="Reading one request's blocks.")
    put_ms: int | None = Field(None, ge=10, le=120_000, description="Writing one batch of blocks.")
    connect_ms: int | None = Field(None, ge=10, le=30_000, description="Connecting and authenticating.")
    stall_ms: int | None = Field(
        None,
        ge=10,
        le=30_000,
        description="Redis, Valkey, LMCacheServer: one that sends no byte for so long is given up.",
    )
    handover_ms: int | None = Field(
        None, ge=1, le=60_000, description="Decode engines: waiting for what a prefill engine is writing to the store."
    )


class Connector(ConnectorChoice):
    """The part of kvpool that runs inside vLLM."""

    timeouts: ConnectorTimeouts | None = Field(None, description="Absent: the connector's defaults.")
    ttl_seconds: int | None = Field(
        None, ge=1, le=31_536_000, description="Redis, Valkey: after this the store may forget a block."
    )
    chunk_tokens: int | None = Field(
        None, ge=1, le=65_536, description="Tokens per stored part, a multiple of vLLM's block size; absent: chosen."
    )
    admission: Literal["Measured", "Always"] | None = Field(
        None, description="Load when measured to be faster than computing (default), or whenever there is a hit."
    )
    verify_one_in: int | None = Field(
        None, ge=1, le=1_000_000_000, description="Of so many requests that hit, one is computed and compared."
    )
    on_failure: Literal["Stop", "Continue"] | None = Field(
        None, description="A cache that cannot start stops the engine (default), or lets it run without."
    )
    offload_generated_tokens: bool | None = Field(
        None, description="Keep the KV of generated tokens too (default true)."
    )
