"""Which workloads get their new Pod template now, and which keep the one that they have.

Nothing restarts a GPU unasked: a workload that runs keeps its Pod template, and what its Pods read
at their start, until the pool's user asks for another one. Why a template differs is found by
:mod:`kvpool_operator.apply.specs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvpool_operator.api.rollout import WaitReason, WaitsUntil
from kvpool_operator.apply import claims, kept, scaling
from kvpool_operator.apply.children import WORKLOADS
from kvpool_operator.apply.claims import Object
from kvpool_operator.apply.compare import holds
from kvpool_operator.apply.decision import (
    Change,
    is_complete,
    ready_pods,
    reason_of,
    runs,
    waits_until,
)
from kvpool_operator.apply.record import Record, read, restarted_at, template_digest, with_record
from kvpool_operator.apply.specs import Specs
from kvpool_operator.apply.turn import Turn
from kvpool_operator.apply.volumes import Step, Volumes
from kvpool_operator.desired import Manifest, Pool
from kvpool_operator.observe.cache import Key, is_going, key_of, owner_uid
from kvpool_operator.status.observed import ClaimFault, Waiting

_OTHER_KIND = {"Deployment": "StatefulSet", "StatefulSet": "Deployment"}


@dataclass
class Rollout:
    """What is to be written once it is decided what waits.

    Attributes:
        manifests: the wanted ones, with the kept Pod template where a workload waits.
        kept: children that are not deleted although they are not among the manifests.
        held: workloads whose Pods go on with what they mount.
        waiting: the workloads that wait.
        faults: claims that cannot become what is wanted.
    """

    manifests: list[Manifest] = dataclasses.field(default_factory=list)
    kept: set[Key] = dataclasses.field(default_factory=set)
    held: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    waiting: list[Waiting] = dataclasses.field(default_factory=list)
    faults: list[ClaimFault] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class _Case:
    """One workload that is there and the manifest that is wanted for it."""

    wanted: Manifest
    live: Mapping[str, Any]
    record: Record
    replicas: str
    ask: str
    edited: bool
    asked: bool
    restarted: bool


class Rollouts:
    """Decides for all workloads of a pool."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes

    async def decide(
        self,
        pool: Pool,
        manifests: Sequence[Manifest],
        live: Mapping[Key, Mapping[str, Any]],
        *,
        ask: str,
    ) -> Rollout:
        """Return what to write.

        Args:
            live: the pool's children as they are.
            ask: the value of the pool's annotation that asks for all that waits.

        Raises:
            ApiError: the API server did not do something with claims that it may do the next time.
        """
        own = {key: body for key, body in live.items() if owner_uid(body) == pool.uid}
        rollout = Rollout()
        turn = Turn(own)
        specs = Specs(pool)
        for manifest in manifests:
            if manifest["kind"] in WORKLOADS:
                await self._workload(specs, manifest, own, turn, ask, rollout)
            else:
                rollout.manifests.append(manifest)
        rollout.manifests = kept.with_kept_files(rollout.manifests, own, rollout.held)
        rollout.kept |= kept.mounts(rollout.held)
        return rollout

    async def _workload(
        self,
        specs: Specs,
        wanted: Manifest,
        own: Mapping[Key, Mapping[str, Any]],
        turn: Turn,
        ask: str,
        rollout: Rollout,
    ) -> None:
        kind, namespace, name = key = key_of(wanted)
        live = own.get(key)
        former = own.get((_OTHER_KIND.get(kind, ""), namespace, name))
        may_be_made = True
        if former is not None and not is_going(former):
            case = _case(specs, wanted, former, ask)
            may_be_made = await self._supersede(specs, case, live, rollout)
        if live is not None and not is_going(live):
            case = _case(specs, wanted, live, ask)
            scaled = scaling.scaled(wanted, live, case.record, case.replicas)
            await self._change(specs, dataclasses.replace(case, wanted=scaled), turn, rollout)
        elif may_be_made:
            replicas = scaling.number_of(specs.pool, wanted)
            record = Record(template_digest(wanted), specs.present, ask, "", replicas)
            rollout.manifests.append(with_record(wanted, record))

    async def _change(self, specs: Specs, case: _Case, turn: Turn, rollout: Rollout) -> None:
        """Decide about a workload that is there."""
        if not _differs(case):
            rollout.manifests.append(_rolled(specs, case))
            return
        until = waits_until(_change_of(specs, case, in_turn=turn.has(case.live)))
        if until is None:
            until = await self._claims(case, rollout)
        if until is None:
            turn.take(case.live)
            rollout.manifests.append(_rolled(specs, case))
            return
        template = case.live["spec"]["template"]
        reason = reason_of(template, case.wanted["spec"]["template"], edited=case.edited)
        rollout.waiting.append(Waiting(_named(case.live), reason, until))
        rollout.held.append(case.live)
        if key_of(case.live) not in rollout.kept:
            rollout.manifests.append(_kept(specs, case, until))

    async def _claims(self, case: _Case, rollout: Rollout) -> WaitsUntil | None:
        """Bring the claims to what is wanted, and return what the workload waits for until then."""
        change = claims.difference(case.live, case.wanted)
        if change is None:
            return None
        if not isinstance(change, ClaimFault):
            step = await self._volumes.grow(case.live, case.wanted, change)
            if isinstance(step, Step):
                if step is Step.REPLACED:
                    rollout.kept.add(key_of(case.live))
                return WaitsUntil.CLAIMS_GROWN
            change = step
        rollout.faults.append(change)
        return WaitsUntil.CLAIMS_POSSIBLE

    async def _supersede(self, specs: Specs, case: _Case, live: Object | None, rollout: Rollout) -> bool:
        """Decide about a workload of another kind whose place the wanted one takes.

        Args:
            live: the workload that takes its place, if it is there.

        Returns:
            whether the one that takes its place may be made.
        """
        former = case.live
        until = waits_until(_change_of(specs, case, in_turn=True))
        if until is not None:
            rollout.held.append(former)
        may_be_made = until is None
        if until is None and not _may_go(former, live, asked=case.asked):
            until = WaitsUntil.REPLACEMENT_READY
        if until is None and not await self._leaves_claims(former):
            until = WaitsUntil.CLAIMS_GROWN
        if until is not None:
            rollout.kept.add(key_of(former))
            rollout.waiting.append(Waiting(_named(former), WaitReason.NEW_KIND, until))
        return may_be_made

    async def _leaves_claims(self, old: Mapping[str, Any]) -> bool:
        """Return whether a workload can be deleted without its claims, whose content is unique."""
        return old["kind"] != "StatefulSet" or await self._volumes.loosen(old)


def _case(specs: Specs, wanted: Manifest, live: Mapping[str, Any], ask: str) -> _Case:
    record = read(live)
    replicas = scaling.number_of(specs.pool, live)
    if record is None:
        # An operator without records made it: nothing says that the spec was edited since.
        record = Record("", specs.present, "", restarted_at(live), replicas)
    return _Case(
        wanted=wanted,
        live=live,
        record=record,
        replicas=replicas,
        ask=ask,
        edited=specs.is_edited(wanted, live, record.spec),
        asked=ask not in ("", record.asked),
        restarted=restarted_at(live) not in ("", record.restarted),
    )


def _differs(case: _Case) -> bool:
    """Return whether the Pods or claims would be others.

    A workload without a record is compared with what is wanted, field by field.
    """
    if claims.difference(case.live, case.wanted) is not None:
        return True
    if case.record.template:
        return case.record.template != template_digest(case.wanted)
    return not holds(case.live["spec"]["template"], case.wanted["spec"]["template"])


def _change_of(specs: Specs, case: _Case, *, in_turn: bool) -> Change:
    return Change(
        policy=specs.pool.spec.rollout.policy,
        runs=runs(case.live),
        edited=case.edited,
        asked=case.asked,
        restarted=case.restarted,
        in_turn=in_turn,
        has_ready=ready_pods(case.live) > 0,
    )


def _rolled(specs: Specs, case: _Case) -> Manifest:
    """Return the wanted manifest: whatever was asked for is answered by it."""
    restarted = restarted_at(case.live)
    record = Record(template_digest(case.wanted), specs.present, case.ask, restarted, case.replicas)
    return with_record(case.wanted, record)


def _kept(specs: Specs, case: _Case, until: WaitsUntil) -> Manifest:
    """Return the wanted manifest with the Pods that there are.

    An edit that waits keeps the spec of before, or it would no longer look like an edit. A restart
    under Paused is over when its Pods are: it does not count once the policy is another one.
    """
    spec = case.record.spec if case.edited else specs.present
    is_paused = until is WaitsUntil.POLICY_CHANGED
    restarted = restarted_at(case.live) if is_paused else case.record.restarted
    record = dataclasses.replace(case.record, spec=spec, restarted=restarted, replicas=case.replicas)
    manifest = kept.with_kept_pods(case.wanted, case.live)
    if until is WaitsUntil.CLAIMS_GROWN:
        manifest = kept.with_loose_claims(manifest)
    return with_record(manifest, record)


def _may_go(old: Mapping[str, Any], new: Mapping[str, Any] | None, *, asked: bool) -> bool:
    """Return whether a workload whose place is taken is of no more use."""
    return asked or not ready_pods(old) or (new is not None and is_complete(new))


def _named(workload: Mapping[str, Any]) -> str:
    return f"{workload['kind']} {workload['metadata']['name']}"
