"""``spec`` of a KVCachePool.

Only defaults that will stay are declared here, because the API server writes them into stored objects. What depends on
the rest of the pool (default memory, resources, probes) is computed in ``desired``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from kvpool_operator.api.injection import Injection
from kvpool_operator.api.types import FREE_FORM, ApiModel, ResourceQuantity, Rule, Size, list_field

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
POOL_NAME_MAX = 40
"""Children are called <pool>-<part>, and a Service's name has 63 characters."""
RESERVED_ENGINE_NAMES = ("store", "connector", "hash-seed")

StoreSize = Annotated[str, Size("64Mi")]
TierSize = Annotated[str, Size("16Mi")]


class StoreType(enum.StrEnum):
    """What engines share."""

    REDIS = "Redis"
    VALKEY = "Valkey"
    NONE = "None"


class Resources(ApiModel):
    """Requests and limits of the main container."""

    requests: dict[str, ResourceQuantity] | None = Field(
        None, description="What the scheduler reserves.", max_length=16
    )
    limits: dict[str, ResourceQuantity] | None = Field(None, description="What the container may use.", max_length=16)


class Model(ApiModel):
    """The model that all engines of the pool serve."""

    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9._/-]+$",
        description="Hugging Face id, or a path inside the engine's container.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9._/-]+$",
        description="Revision of the weights; a full commit hash also becomes part of the cache's keys.",
    )
    served_name: str | None = Field(
        None,
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9._/:-]+$",
        description="Name that clients ask for; absent: model.name.",
    )


class PasswordRef(ApiModel):
    """A Secret in the pool's namespace."""

    name: str = Field(min_length=1, max_length=253, description="The Secret's name.")
    password_key: str = Field("password", max_length=253, description="Key that holds the password.")
    username_key: str | None = Field(
        None, max_length=253, description="Key that holds the ACL user's name; absent: the default user."
    )


class Auth(ApiModel):
    """How to authenticate to an external store."""

    secret_ref: PasswordRef = Field(description="Where the password is. It is mounted as a file, never copied.")


class External(ApiModel):
    """A store that somebody else runs."""

    host: str = Field(
        min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:-]+$", description="Host name or address, without port."
    )
    port: int = Field(6379, ge=1, le=65535, description="TCP port.")
    database: int = Field(0, ge=0, le=1_000_000, description="Number of the database.")
    auth: Auth | None = Field(None, description="Absent: the store asks for no password.")


def _not_both(field: str, python_name: str) -> Rule:
    return Rule(
        cel=f"!(has(self.external) && has(self.{field}))",
        message=f"spec.backend.{field} belongs to a store that kvpool runs, spec.backend.external to one that you run: "
        "remove one of the two",
        holds=lambda self: self.external is None or getattr(self, python_name) is None,
        field_path=f".{field}",
    )


class Backend(ApiModel):
    """The store that engines share: run by kvpool, or ``external``."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _not_both("memory", "memory"),
        _not_both("image", "image"),
        _not_both("resources", "resources"),
        _not_both("eviction", "eviction"),
        Rule(
            cel="self.type != 'None' || !(has(self.external) || has(self.memory) || has(self.image) || "
            "has(self.resources) || has(self.eviction))",
            message="spec.backend.type is None, so spec.backend must have no other field: "
            "set the type to Redis or Valkey, or remove the rest",
            holds=lambda self: (
                self.type is not StoreType.NONE
                or not any((self.external, self.memory, self.image, self.resources, self.eviction))
            ),
            field_path=".type",
        ),
    )

    type: StoreType = Field(
        StoreType.VALKEY, description="Redis and Valkey speak the same protocol; None: engines share nothing."
    )
    memory: StoreSize | None = Field(
        None, description="Memory limit of the store kvpool runs (default 1Gi); 85% of it holds blocks."
    )
    eviction: Literal["allkeys-lru", "allkeys-lfu", "allkeys-random"] | None = Field(
        None, description="Which blocks a full store drops (default allkeys-lru)."
    )
    image: str | None = Field(
        None, min_length=1, max_length=512, description="Image of the store; absent: the operator's default."
    )
    resources: Resources | None = Field(
        None, description="CPU and further resources of the store; its memory comes from 'memory'."
    )
    external: External | None = Field(None, description="Use this store instead of running one.")


class CpuTier(ApiModel):
    """Host memory inside each engine's Pod."""

    size: TierSize = Field(description="Memory per engine replica for KV blocks.")


class Tiers(ApiModel):
    """Where an engine keeps blocks of its own."""

    cpu: CpuTier | None = Field(None, description="Memory next to the engine: the fastest place after the GPU.")


class ConnectorTimeouts(ApiModel):
    """Upper bounds in milliseconds; whatever is late is recomputed."""

    lookup_ms: int | None = Field(None, ge=1, le=10_000, description="Asking the store which blocks it has.")
    fetch_ms: int | None = Field(None, ge=10, le=120_000, description="Reading one request's blocks.")
    put_ms: int | None = Field(None, ge=10, le=120_000, description="Writing one batch of blocks.")
    connect_ms: int | None = Field(None, ge=10, le=30_000, description="Connecting and authenticating.")


class Connector(ApiModel):
    """The part of kvpool that runs inside vLLM."""

    timeouts: ConnectorTimeouts | None = Field(None, description="Absent: the connector's defaults.")
    ttl_seconds: int | None = Field(None, ge=1, le=31_536_000, description="After this the store may forget a block.")
    offload_generated_tokens: bool | None = Field(
        None, description="Keep the KV of generated tokens too (default true)."
    )


class EnvVar(ApiModel):
    """One environment variable, as in a Pod."""

    name: str = Field(min_length=1, max_length=253, description="The variable's name.")
    value: str | None = Field(None, max_length=32768, description="Its value.")
    value_from: dict[str, Any] | None = Field(
        None, description="Where its value comes from, as in a Pod.", json_schema_extra=FREE_FORM
    )


class SecretKey(ApiModel):
    """One key of a Secret in the pool's namespace."""

    name: str = Field(min_length=1, max_length=253, description="The Secret's name.")
    key: str = Field("token", min_length=1, max_length=253, description="The key in it.")


class Engine(ApiModel):
    """One vLLM Deployment with its Service."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"!(self.name in [{', '.join(map(repr, RESERVED_ENGINE_NAMES))}])",
            message=f"spec.engines[].name must not be one of {', '.join(RESERVED_ENGINE_NAMES)}: "
            "kvpool uses these names for other objects of the pool",
            holds=lambda self: self.name not in RESERVED_ENGINE_NAMES,
            field_path=".name",
        ),
    )

    name: str = Field(
        "engine", max_length=20, pattern=NAME_PATTERN, description="Deployment and Service are called <pool>-<name>."
    )
    replicas: int = Field(1, ge=0, le=1000, description="How many Pods.")
    gpus: int = Field(0, ge=0, le=16, description="GPUs per Pod; 0: vLLM's CPU build.")
    port: int = Field(8000, ge=1024, le=65535, description="Port of the OpenAI-compatible server and its Service.")
    image: str | None = Field(
        None, min_length=1, max_length=512, description="Image with vLLM and kvpool's connector; absent: the default."
    )
    args: tuple[Annotated[str, Field(max_length=4096)], ...] = list_field(
        kind="atomic", maximum=128, description="Further arguments of vLLM; they come last and win."
    )
    env: tuple[EnvVar, ...] = list_field(
        kind="map", keys=("name",), maximum=128, description="Further environment variables; they win over kvpool's."
    )
    resources: Resources | None = Field(
        None, description="Of the engine's container; absent: requests are computed from the tiers."
    )
    hf_token_secret_ref: SecretKey | None = Field(
        None, description="Hugging Face token, for models that are not public."
    )
    pod_template: dict[str, Any] | None = Field(
        None,
        description="Metadata and spec merged into the engine's Pod template the way kubectl patch does: lists by name.",
        json_schema_extra=FREE_FORM,
    )


class Isolation(ApiModel):
    """Who shares blocks with whom."""

    tenant: str | None = Field(
        None,
        max_length=63,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Part of every key: pools with different tenants never share blocks in one store.",
    )


class KVCachePoolSpec(ApiModel):
    """What the pool shall be."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(has(self.backend) && self.backend.type != 'None') || (has(self.tiers) && has(self.tiers.cpu))",
            message="spec.backend and spec.tiers.cpu are both missing, so the pool would hold nothing: "
            "set spec.backend.type to Redis or Valkey, or set spec.tiers.cpu.size",
            holds=lambda self: self.has_store or self.tiers.cpu is not None,
        ),
        Rule(
            cel="!has(self.engines) || size(self.engines) == 0 || has(self.model)",
            message="spec.model is missing although spec.engines is there: set spec.model.name",
            holds=lambda self: not self.engines or self.model is not None,
            field_path=".engines",
        ),
    )

    model: Model | None = Field(None, description="What the engines serve.")
    backend: Backend | None = Field(None, description="The shared store; absent: none.")
    tiers: Tiers = Field(Tiers(), description="Where each engine keeps blocks of its own.")
    connector: Connector = Field(Connector(), description="Settings of the connector inside vLLM.")
    engines: tuple[Engine, ...] = list_field(
        kind="map", keys=("name",), maximum=16, description="vLLM Deployments that share the pool."
    )
    isolation: Isolation = Field(Isolation(), description="Who shares blocks with whom.")
    injection: Injection = Field(Injection(), description="Pods of others that use the pool.")
    paused: bool = Field(False, description="Leave all children as they are; the status is still kept.")

    @property
    def has_store(self) -> bool:
        return self.backend is not None and self.backend.type is not StoreType.NONE

    @property
    def managed_store(self) -> Backend | None:
        """The store that kvpool runs, if it does."""
        return self.backend if self.backend and self.has_store and self.backend.external is None else None


class InvalidSpec(ValueError):
    """The object cannot be read. The message names each field and the fix."""


def parse_spec(raw: Mapping[str, Any]) -> KVCachePoolSpec:
    """``spec`` as the API server has it.

    Raises:
        InvalidSpec: a rule is broken that this operator knows and the installed CRD did not check.
    """
    try:
        return KVCachePoolSpec.model_validate(raw)
    except ValidationError as error:
        faults = [
            f"{'.'.join(('spec', *map(str, fault['loc'])))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors(include_input=False, include_url=False)
        ]
        raise InvalidSpec("; ".join(faults)) from None
