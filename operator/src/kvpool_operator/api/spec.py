"""``spec`` of a KVCachePool.

Only defaults that will stay are declared here, because the API server writes them into stored objects. What depends on
the rest of the pool (default memory, resources, probes) is computed in ``desired``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError

from kvpool_operator.api.backend import Backend, StoreType
from kvpool_operator.api.connector_types import RULES as CONNECTOR_RULES
from kvpool_operator.api.connector_types import Role
from kvpool_operator.api.injection import Injection
from kvpool_operator.api.object_names import DataKey, ObjectName, VariableName
from kvpool_operator.api.rollout import Rollout
from kvpool_operator.api.sections import Resources
from kvpool_operator.api.tiers import Connector, Tiers
from kvpool_operator.api.types import FREE_FORM, ApiModel, Rule, list_field

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
POOL_NAME_MAX = 40
"""Children are called <pool>-<part>, and a Service's name has 63 characters."""
RESERVED_ENGINE_NAMES = ("store", "connector", "hash-seed", "members", "sentinel", "master", "etcd", "lmcache")


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


class EnvVar(ApiModel):
    """One environment variable, as in a Pod."""

    name: VariableName = Field(description="The variable's name.")
    value: str | None = Field(None, max_length=32768, description="Its value.")
    value_from: dict[str, Any] | None = Field(
        None, description="Where its value comes from, as in a Pod.", json_schema_extra=FREE_FORM
    )


class SecretKey(ApiModel):
    """One key of a Secret in the pool's namespace."""

    name: ObjectName = Field(description="The Secret's name.")
    key: DataKey = Field("token", description="The key in it.")


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
    role: Role = Field(
        Role.BOTH, description="Prefill computes prompts, Decode answers; a router sends each request to both."
    )
    replicas: int = Field(
        1, ge=0, le=1000, description="How many Pods, unless somebody else scales the workload, such as an autoscaler."
    )
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
            cel="(has(self.backend) && self.backend.type != 'None') || (has(self.tiers) && (has(self.tiers.cpu) || "
            "has(self.tiers.disk)))",
            message="spec.backend, spec.tiers.cpu and spec.tiers.disk are all missing, so the pool would hold nothing: "
            "set spec.backend.type to Redis or Valkey, or set spec.tiers.cpu.size",
            holds=lambda self: self.has_store or self.tiers.cpu is not None or self.tiers.disk is not None,
        ),
        Rule(
            cel="!has(self.connector) || !has(self.connector.ttlSeconds) || !has(self.backend) || "
            "self.backend.type in ['Redis', 'Valkey', 'None']",
            message="spec.connector.ttlSeconds is for Redis and Valkey only: remove it, or change spec.backend.type",
            holds=lambda self: self.connector.ttl_seconds is None or not self.has_store or self.backend.is_redis,
            field_path=".connector",
        ),
        Rule(
            cel="!has(self.engines) || size(self.engines) == 0 || has(self.model)",
            message="spec.model is missing although spec.engines is there: set spec.model.name",
            holds=lambda self: not self.engines or self.model is not None,
            field_path=".engines",
        ),
        *CONNECTOR_RULES,
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
    rollout: Rollout = Field(Rollout(), description="When Pods that run are replaced.")
    paused: bool = Field(False, description="Leave all children as they are; the status is still kept.")

    @property
    def has_store(self) -> bool:
        return self.backend is not None and self.backend.type is not StoreType.NONE

    @property
    def managed_store(self) -> Backend | None:
        """The store that kvpool runs, if it does."""
        return self.backend if self.backend and self.has_store and self.backend.external is None else None

    @property
    def managed_redis(self) -> Backend | None:
        """The Redis or Valkey that kvpool runs: one server, or a group with sentinels."""
        return self.managed_store if self.managed_store and self.managed_store.is_redis else None

    def managed(self, kind: StoreType) -> Backend | None:
        """The store that kvpool runs, if it is of this kind."""
        return self.managed_store if self.managed_store and self.managed_store.type is kind else None

    @property
    def uses_sentinels(self) -> bool:
        """Whether kvpool runs sentinels."""
        return self.managed_redis is not None and self.managed_redis.mode == "Sentinel"


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
