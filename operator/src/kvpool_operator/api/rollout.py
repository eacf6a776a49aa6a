"""``spec.rollout`` and ``status.rollout``: when Pods that run are replaced."""

from __future__ import annotations

import enum

from pydantic import Field

from kvpool_operator.api.types import GROUP, ApiModel, list_field

ROLLOUT_NOW = f"{GROUP}/rollout-now"
"""Annotation of a pool: a value that was not there before asks for all that waits."""
MOST_WAITING = 64
"""Entries of status.rollout.waiting. A pool has 16 engines and a few workloads of its store."""


class RolloutPolicy(enum.StrEnum):
    """When a workload whose Pods run gets another Pod template."""

    ON_NEXT_RESTART = "OnNextRestart"
    """An edit of the pool's spec is carried out. Any other change waits until it is asked for."""
    IMMEDIATE = "Immediate"
    """Every change is carried out at once, one engine after the other."""
    PAUSED = "Paused"
    """No change is carried out, not even one of the pool's spec."""


class WaitReason(enum.StrEnum):
    """What is different in the Pods that a workload would get."""

    SPEC_CHANGED = "SpecChanged"
    """The pool's spec was edited."""
    NEW_IMAGE = "NewImage"
    """The operator or its chart brings another image."""
    NEW_CONFIGURATION = "NewConfiguration"
    """The operator would write another configuration, or a Secret of it was made anew."""
    NEW_POD_TEMPLATE = "NewPodTemplate"
    """Something else of the Pods is different, such as a default or a probe."""
    NEW_KIND = "NewKind"
    """A workload of another kind takes the place of this one."""


class WaitsUntil(enum.StrEnum):
    """What ends a workload's wait."""

    ASKED = "Asked"
    """Somebody asks: by the annotation, by a restart, or by an edit that changes the Pods."""
    POLICY_CHANGED = "PolicyChanged"
    """The policy is no longer Paused."""
    OTHERS_READY = "OthersReady"
    """All Pods of the pool's other engines are ready."""
    CLAIMS_GROWN = "ClaimsGrown"
    """The claims of its Pods have their new size."""
    CLAIMS_POSSIBLE = "ClaimsPossible"
    """The spec asks for claims that can be had; UpToDate says what is wrong with them."""
    REPLACEMENT_READY = "ReplacementReady"
    """All Pods of the workload that takes its place are ready, or somebody asks for it."""


class Rollout(ApiModel):
    """How a change reaches Pods that run."""

    policy: RolloutPolicy = Field(
        RolloutPolicy.ON_NEXT_RESTART,
        description="OnNextRestart: an edit of this spec is rolled out, and what an upgrade of the "
        "operator would change waits for the next restart that you ask for (annotation "
        f"{ROLLOUT_NOW}, or kubectl rollout restart); Immediate: all changes at once; Paused: "
        "none. Engines roll one after the other.",
    )


class WaitingWorkload(ApiModel):
    """A workload that keeps its Pods although others are wanted."""

    workload: str = Field(max_length=320, description="Kind and name, such as Deployment demo-engine.")
    reason: WaitReason = Field(description="What would be different.")
    until: WaitsUntil = Field(description="What ends the wait.")


class RolloutStatus(ApiModel):
    """What is not rolled out."""

    waiting: tuple[WaitingWorkload, ...] = list_field(
        kind="map",
        keys=("workload",),
        maximum=MOST_WAITING,
        description="Workloads that keep their Pods for now.",
    )
