"""Everything that was seen about one pool, in one immutable value. ``observe`` makes it, ``status`` judges it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvpool_operator.desired import Pool


class StoreState(enum.Enum):
    """What a probe of an external store or etcd found."""

    AVAILABLE = "Available"
    UNREACHABLE = "Unreachable"
    AUTH_FAILED = "AuthFailed"
    NO_DATABASE = "NoDatabase"
    SECRET_MISSING = "SecretMissing"  # noqa: S105  (a state's name)
    UNKNOWN_MASTER = "UnknownMaster"
    NO_QUORUM = "EtcdQuorumLost"


@dataclass(frozen=True)
class StoreProbe:
    """One probe's result. ``detail`` is for people and holds no credentials."""

    state: StoreState
    detail: str


@dataclass(frozen=True)
class PodTrouble:
    """Why a Pod does not run, in the words of Kubernetes."""

    pod: str
    reason: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """A child that could not be made as wanted."""

    kind: str
    name: str
    message: str
    component: str
    """Its app.kubernetes.io/component label."""


@dataclass(frozen=True)
class Consumer:
    """A Pod of others that names a pool.

    Attributes:
        pool: namespace and name.
        mark: the annotation that injection left; empty: none.
        skip: the reason that injection left; empty: none.
        version: of the Pod.
        workload: kind and name of what made the Pod.
    """

    namespace: str
    pod: str
    pool: tuple[str, str]
    mark: str
    skip: str
    version: int
    workload: str = ""


@dataclass(frozen=True)
class Observed:
    """One pool and its surroundings at one moment.

    Attributes:
        pool: None when the spec could not be read; then ``invalid`` says why.
        daemon_sets: DaemonSets of the pool by name, as they are now.
        workloads: Deployments and StatefulSets of the pool by name, as they are now.
        probe: of an external store or etcd; None for a managed one or none.
        troubles: of Pods, by workload name; looked for only where Pods are missing.
        refusals: what apply could not do.
        consumers: Pods of others that name the pool, in namespaces that may use it.
    """

    generation: int
    pool: Pool | None
    invalid: str | None = None
    invalid_config: str | None = None
    daemon_sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    workloads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    probe: StoreProbe | None = None
    troubles: Mapping[str, tuple[PodTrouble, ...]] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    consumers: tuple[Consumer, ...] = ()
