"""Everything that was seen about one pool, in one immutable value. ``observe`` makes it, ``status`` judges it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvpool_operator.api.rollout import WaitReason, WaitsUntil
from kvpool_operator.desired import Pool


class StoreState(enum.Enum):
    """What a probe of an external store or etcd found."""

    AVAILABLE = "Available"
    UNREACHABLE = "Unreachable"
    AUTH_FAILED = "AuthFailed"
    NO_DATABASE = "NoDatabase"
    SECRET_MISSING = "SecretMissing"  # noqa: S105  (a state's name)
    SECRET_NOT_OFFERED = "SecretNotOffered"  # noqa: S105
    NOT_LOOKED_AT = "ApiServerFailing"
    """The API server did not tell what is in a Secret, or which addresses are its own."""
    UNKNOWN_MASTER = "UnknownMaster"
    NO_QUORUM = "EtcdQuorumLost"
    ADDRESS_REFUSED = "AddressRefused"


@dataclass(frozen=True)
class StoreProbe:
    """One probe's result. ``detail`` is for people and holds no credentials."""

    state: StoreState
    detail: str


WITHHELD = frozenset({StoreState.SECRET_MISSING, StoreState.SECRET_NOT_OFFERED, StoreState.NOT_LOOKED_AT})
"""States in which a Secret that the pool names can't be used: nothing is written that would mount it, or that would lack a
name that is in it. What is there stays as it is."""


@dataclass(frozen=True)
class PodTrouble:
    """Why a Pod does not run, in the words of Kubernetes."""

    pod: str
    reason: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """A child that could not be made as wanted.

    Attributes:
        component: its label app.kubernetes.io/component.
    """

    kind: str
    name: str
    message: str
    component: str


@dataclass(frozen=True)
class Unanswered:
    """A call that the API server did not carry out, although it might the next time.

    Attributes:
        what: what was to be done, such as ``reading the pool's objects``.
        message: the API server's, or the network's.
    """

    what: str
    message: str


@dataclass(frozen=True)
class Waiting:
    """A workload that keeps its Pods although others are wanted.

    Attributes:
        workload: its kind and name.
    """

    workload: str
    reason: WaitReason
    until: WaitsUntil


@dataclass(frozen=True)
class ClaimFault:
    """Claims that cannot become what is wanted.

    Attributes:
        reason: one word for programs.
        message: what to do about it.
    """

    reason: str
    message: str


class Seen(enum.Enum):
    """What the container that injection changed was seen to do."""

    NOT_READY = "not ready"
    """It waits, or starts, or ended without an error, or nothing was seen of it."""
    READY = "ready"
    """It runs and is ready."""
    CRASHED = "crashed"
    """It is not ready, and its last run ended with an error. The container that brings the connector counts, too."""
    RAY = "Ray's"
    """It is a container of Ray's, which is ready whatever the engines in it do."""


class EngineState(enum.StrEnum):
    """What an engine in a Pod says of kvpool, in the words of its own gauge; the last one is ours."""

    ACTIVE = "active"
    SKIPPED = "skipped"
    """It has another cache, or settings with which kvpool would be wrong."""
    DISABLED = "disabled"
    """vLLM, or the connector, could not start with it."""
    ABSENT = "absent"
    """It answers as vLLM does, and knows nothing of kvpool."""


@dataclass(frozen=True)
class EngineSays:
    """An engine's own word. The reason is the engine's, and so a stranger's: for people to read."""

    state: EngineState
    reason: str


@dataclass(frozen=True)
class EngineAddress:
    """Where an engine answers.

    Attributes:
        run: of the container: another one after each of its starts.
    """

    host: str
    port: int
    run: str


@dataclass(frozen=True)
class Consumer:
    """A user's Pod that names a pool.

    Attributes:
        pool: namespace and name.
        mark: the annotation that injection left; empty: none.
        skip: the reason that injection left; empty: none.
        version: of the Pod.
        workload: kind and name of what made the Pod.
        seen: of the container that was changed.
        crash: the container that crashed and how; empty: none did.
        address: of the engine in the container that was changed, while that is ready; None: not known.
        says: what that engine says; None: nothing was heard of it.
        warning: what injection told the Pod's owner; empty: nothing.
    """

    namespace: str
    pod: str
    pool: tuple[str, str]
    mark: str
    skip: str
    version: int
    workload: str = ""
    seen: Seen = Seen.NOT_READY
    crash: str = ""
    address: EngineAddress | None = None
    says: EngineSays | None = None
    warning: str = ""


@dataclass(frozen=True)
class Observed:
    """One pool and its surroundings at one moment.

    Attributes:
        pool: None when the spec could not be read; then ``invalid`` says why.
        daemon_sets: DaemonSets of the pool by name, as they are now.
        workloads: Deployments and StatefulSets of the pool by name, as they are now.
        probe: of an external store or etcd; None for a managed one or none.
        troubles: of Pods, by workload name; looked for only where Pods are missing.
        refusals: what the API server refused; the same request will be refused again.
        unanswered: what it did not do for another reason: of that nothing is known.
        held: why the children were left as they are; None where they were not.
        config_hash: of the configuration that the children have; empty where there is none.
        unconsenting: namespaces that the pool is to be shared with and that do not say so themselves.
        children_known: whether the pool's objects were ever listed; if not, nothing can be said of those that seem to lack.
        consents_known: whether the namespaces said which of them take the pool.
        fault: a fault of the operator itself ended the reconciliation.
        consumers: Pods of others that name the pool, in namespaces that may use it.
        waiting: workloads that keep their Pods for now; None where nothing was planned.
        claim_faults: claims that cannot become what is wanted.
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
    unanswered: tuple[Unanswered, ...] = ()
    held: str | None = None
    config_hash: str = ""
    unconsenting: tuple[str, ...] = ()
    consents_known: bool = True
    children_known: bool = True
    fault: bool = False
    consumers: tuple[Consumer, ...] = ()
    waiting: tuple[Waiting, ...] | None = None
    claim_faults: tuple[ClaimFault, ...] = ()
