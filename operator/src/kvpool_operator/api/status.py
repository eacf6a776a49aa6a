"""``status`` of a KVCachePool: what the operator saw, in the terms of ``spec``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kvpool_operator.api.injection import CONSUMERS_SHOWN, ConsumerStatus, NamespaceName
from kvpool_operator.api.rollout import RolloutStatus
from kvpool_operator.api.types import ApiModel, list_field


class Condition(ApiModel):
    """One statement about the pool, true or false, with the reason and what to do."""

    type: str = Field(max_length=316, description="What the statement is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(max_length=1024, description="One word for programs.")
    message: str = Field(max_length=32768, description="For people: what is wrong and the fix.")
    last_transition_time: str = Field(
        description="When status last changed.", json_schema_extra={"format": "date-time"}
    )
    observed_generation: int | None = Field(None, ge=0, description="The spec that this is about.")


class EngineEndpoint(ApiModel):
    """Where an engine answers."""

    name: str = Field(max_length=63, description="The engine's name in spec.engines.")
    url: str = Field(max_length=512, description="Base URL inside the cluster.")


class Endpoints(ApiModel):
    """Where things are, inside the cluster."""

    workloads_waiting: int | None = Field(
        None, ge=0, description="Workloads of others with Pods that would get the cache if they were restarted."
    )
    store: str | None = Field(None, max_length=512, description="Host and port of the store.")
    engines: tuple[EngineEndpoint, ...] = list_field(
        kind="map", keys=("name",), maximum=16, description="One entry for each engine."
    )


class ConfigStatus(ApiModel):
    """The connector's configuration."""

    hash: str = Field(max_length=64, description="Changes with the content; Pods carry it as an annotation.")


class EngineStatus(ApiModel):
    """One engine's Pods."""

    name: str = Field(max_length=63, description="The engine's name in spec.engines.")
    ready: int = Field(ge=0, description="Pods that serve the wanted template.")
    desired: int = Field(ge=0, description="Pods wanted.")


class KVCachePoolStatus(ApiModel):
    """What the operator saw."""

    observed_generation: int | None = Field(None, ge=0, description="The spec that this status is about.")
    conditions: tuple[Condition, ...] = list_field(
        kind="map", keys=("type",), maximum=32, description="Statements about the pool."
    )
    endpoints: Endpoints | None = Field(None, description="Where store and engines answer.")
    config: ConfigStatus | None = Field(None, description="The connector's configuration.")
    engines: tuple[EngineStatus, ...] = list_field(
        kind="map", keys=("name",), maximum=16, description="The Pods of each engine."
    )
    rollout: RolloutStatus | None = Field(None, description="What is not rolled out; absent: nothing waits.")
    consumers: tuple[ConsumerStatus, ...] = list_field(
        kind="atomic",
        maximum=CONSUMERS_SHOWN,
        description="Pods of others that name the pool, those that do not use it first.",
    )
    consumer_count: int | None = Field(None, ge=0, description="How many Pods of others name the pool.")
    workloads_waiting: int | None = Field(
        None, ge=0, description="Workloads of others with Pods that would get the cache if they were restarted."
    )
    refusing_namespaces: tuple[NamespaceName, ...] = list_field(
        kind="set",
        maximum=64,
        description="Namespaces in spec.injection.allowedNamespaces that do not take the pool; nothing is written there.",
    )
    store: str | None = Field(None, max_length=64, description="The store in a word, for kubectl get.")
    engines_ready: str | None = Field(None, max_length=32, description="Ready and wanted Pods, for kubectl get.")
