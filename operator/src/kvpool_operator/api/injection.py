"""``spec.injection`` and ``status.consumers``: users' Pods that use a pool."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from kvpool_operator.api.types import ApiModel, list_field

CONSUMERS_SHOWN = 50
"""Entries of status.consumers; status.consumerCount counts all."""

NamespaceName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class InjectionMode(enum.StrEnum):
    """Whether Pods of others get the cache."""

    POD = "Pod"
    OFF = "Off"


class ConflictPolicy(enum.StrEnum):
    """What happens to a vLLM that has a KV connector already."""

    SKIP = "Skip"
    MULTI = "Multi"
    REPLACE = "Replace"
    FAIL = "Fail"


class Delivery(enum.StrEnum):
    """How the connector's code gets into the container."""

    AUTO = "Auto"
    IMAGE = "Image"
    INIT_CONTAINER = "InitContainer"


class Injection(ApiModel):
    """How Pods that name the pool in the annotation kvpool.dev/pool get the cache."""

    mode: InjectionMode = Field(
        InjectionMode.POD, description="Pod: at the creation of each Pod that asks for it; Off: never."
    )
    allowed_namespaces: tuple[NamespaceName, ...] = list_field(
        kind="set",
        maximum=64,
        description="Further namespaces whose Pods may use the pool. Its configuration, hash seed and the password of a "
        "managed store are copied there.",
    )
    conflict_policy: ConflictPolicy = Field(
        ConflictPolicy.SKIP,
        description="For a vLLM that has a KV connector already. Skip: leave it alone; Multi: both, kvpool's first; "
        "Replace: kvpool's instead of LMCache's; Fail: the engine does not start.",
    )
    delivery: Delivery = Field(
        Delivery.AUTO,
        description="InitContainer: an init container copies the connector in; Image: the container's image has it; "
        "Auto: as Image for the operator's own image for engines, as InitContainer for all others.",
    )


class ConsumerStatus(ApiModel):
    """One Pod that names the pool."""

    namespace: str = Field(max_length=63, description="The Pod's namespace.")
    pod: str = Field(max_length=253, description="The Pod's name.")
    workload: str = Field("", max_length=320, description="Kind and name of what made the Pod, such as Deployment web.")
    state: str = Field(
        max_length=32,
        description="Active (its engine says that it has the cache), Injected (changed at its creation, and its container is "
        "ready), Written (changed, and not seen ready), Failing (changed, and its container crashes), Disabled (its engine "
        "could not start with the cache), Outdated (changed for an older configuration), Skipped (left alone, for a reason) "
        "or Missed (never seen).",
    )
    reason: str = Field("", max_length=1024, description="Why it is not Active, or what to know, and what to do.")
