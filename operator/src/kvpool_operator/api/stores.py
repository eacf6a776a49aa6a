"""What kinds of stores have of their own, in ``spec.backend``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kvpool_operator.api.object_names import OptionalName
from kvpool_operator.api.sections import ADDRESS, Resources, StoreSize
from kvpool_operator.api.types import ApiModel, Rule

RESOURCE_NAME = r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$"


class Sentinel(ApiModel):
    """How sentinels that kvpool runs judge a primary."""

    down_after_seconds: int = Field(
        5, ge=1, le=600, description="A primary that answers nobody for so long is replaced."
    )
    failover_timeout_seconds: int = Field(
        10,
        ge=5,
        le=3600,
        description="After this an attempt to replace it is given up, and after this again the next one begins.",
    )


class Rdma(ApiModel):
    """RDMA devices of a Pod."""

    resource: str | None = Field(
        None,
        max_length=253,
        pattern=RESOURCE_NAME,
        description="What your RDMA device plugin offers, such as rdma/hca_shared_devices_a.",
    )
    devices: str | None = Field(
        None,
        max_length=253,
        pattern=r"^[A-Za-z0-9_,]+$",
        description="RDMA devices, separated by commas; absent: all.",
    )


class Mooncake(ApiModel):
    """A Mooncake store: masters that know where blocks are, and stores that hold them."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.protocol != 'RDMA' || (has(self.rdma) && has(self.rdma.resource))",
            message="spec.backend.mooncake.protocol is RDMA, which needs devices in the Pods: set "
            "spec.backend.mooncake.rdma.resource to what your RDMA device plugin offers, or set the protocol to TCP",
            holds=lambda self: self.protocol != "RDMA" or bool(self.rdma and self.rdma.resource),
            field_path=".protocol",
        ),
        Rule(
            cel="self.copies == 1 || !has(self.replicas) || self.copies <= self.replicas",
            message="spec.backend.mooncake.copies is more than spec.backend.mooncake.replicas: copies of a block lie in "
            "different stores, so raise replicas or lower copies",
            holds=lambda self: self.copies == 1 or self.replicas is None or self.copies <= self.replicas,
            field_path=".copies",
        ),
    )

    replicas: int | None = Field(None, ge=1, le=256, description="Stores, each with 'memory' (default 1).")
    copies: int = Field(1, ge=1, le=8, description="Copies of each block, in different stores.")
    ha: bool | None = Field(
        None, description="Three masters with etcd, of which one serves, instead of one (default false)."
    )
    metadata: Literal["P2PHandshake", "Etcd"] | None = Field(
        None, description="How clients find each other: directly (default), or through etcd."
    )
    protocol: Literal["TCP", "RDMA"] = Field("TCP", description="How blocks travel.")
    rdma: Rdma | None = Field(None, description="With protocol RDMA.")
    master_resources: Resources | None = Field(
        None, description="Of each master (default: 200m CPU, 512Mi requested, 2Gi limit)."
    )

    @property
    def needs_etcd(self) -> bool:
        return bool(self.ha) or self.metadata == "Etcd"


class ExternalEtcd(ApiModel):
    """An etcd that somebody else runs, without TLS and password: Mooncake's client has neither."""

    endpoints: tuple[Annotated[str, Field(max_length=260, pattern=rf"^{ADDRESS}$")], ...] = Field(
        min_length=1,
        max_length=16,
        description="Members as host:port. It serves this pool alone: the keys that Mooncake uses have fixed names.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class Etcd(ApiModel):
    """etcd for Mooncake's masters and metadata."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.external) || !(has(self.replicas) || has(self.storage) || has(self.storageClassName) || "
            "has(self.image))",
            message="spec.backend.etcd.external is an etcd that you run; replicas, storage, storageClassName and image belong to "
            "one that kvpool runs: remove one of the two",
            holds=lambda self: (
                self.external is None
                or (self.replicas, self.storage, self.storage_class_name, self.image) == (None, None, None, None)
            ),
            field_path=".external",
        ),
    )

    replicas: Literal[1, 3] | None = Field(None, description="Members: 3 (default) outlive the loss of one.")
    storage: StoreSize | None = Field(None, description="Volume of each member (default 2Gi).")
    storage_class_name: OptionalName | None = Field(
        None, description="StorageClass of the volumes; absent: the cluster's default; empty: volumes without one."
    )
    image: str | None = Field(None, min_length=1, max_length=512, description="Absent: the operator's default.")
    external: ExternalEtcd | None = Field(None, description="Use this etcd instead of running one.")


class InfiniStore(ApiModel):
    """InfiniStore over RDMA. Experimental: it could not be run without RDMA devices."""

    experimental: bool = Field(False, description="Must be true: you know that nobody tested it.")
    rdma_resource: str | None = Field(
        None,
        max_length=253,
        pattern=RESOURCE_NAME,
        description="What your RDMA device plugin offers; servers and engines get one.",
    )
    device: str | None = Field(
        None, max_length=63, pattern=r"^[A-Za-z0-9_]+$", description="RDMA device; absent: the first one."
    )
    link_type: Literal["Ethernet", "IB"] = Field("Ethernet", description="RoCE or InfiniBand.")
