"""One pool from what it is to what it should be, in named phases that return values: observe, plan, apply, look, report.

Level-based: no phase asks what changed. What the API server answers to a phase is part of the phase's value, so that the last
phase always writes the status, also when the API server refused something or was in trouble. Knows nothing of kopf. The caller
sees to it that one pool is reconciled once at a time.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from kvpool_connector.config import ConfigError
from kvpool_operator.api import InvalidSpec, KVCachePoolSpec, Settings, parse_spec
from kvpool_operator.api.pod_template import check_templates
from kvpool_operator.api.rollout import ROLLOUT_NOW, WaitsUntil
from kvpool_operator.apply.children import Children
from kvpool_operator.apply.events import record
from kvpool_operator.apply.owner import Owner, PoolGone
from kvpool_operator.apply.rollouts import Rollouts
from kvpool_operator.apply.secrets import SecretRefused, SecretValues
from kvpool_operator.apply.status import write_status
from kvpool_operator.apply.volumes import Volumes
from kvpool_operator.desired import Manifest, Material, Pool, connector_files, desired
from kvpool_operator.kube import ApiError, Client
from kvpool_operator.observe.cache import Cache, is_copy, key_of, owner_uid
from kvpool_operator.observe.consent import Consents
from kvpool_operator.observe.gather import Observer, PoolKey
from kvpool_operator.status import events
from kvpool_operator.status.fold import build_status
from kvpool_operator.status.observed import WITHHELD, Consumer, Observed, Refusal, Unanswered

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
Default = TypeVar("Default")


def _utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _last_config_hash(body: Mapping[str, Any]) -> str:
    """Return the hash of the configuration that the children were last given."""
    return str(body.get("status", {}).get("config", {}).get("hash", ""))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        manifests: all children; None where those that exist are left as they are.
        seen: what was seen, with the reason why nothing is written.
    """

    manifests: Sequence[Manifest] | None
    seen: Observed


def plan(seen: Observed) -> Plan:
    """Decide what to write. While something that the children depend on is not known, nothing is written at all: a
    configuration without a user's name, or copies for namespaces that may no longer want them, would be worse than an old one.
    """
    pool = seen.pool
    if pool is None:
        return Plan(None, seen)
    held = _reason_to_hold(seen)
    if held is not None or pool.spec.paused:
        return Plan(None, dataclasses.replace(seen, held=held))
    try:
        manifests = desired(pool)
        config_hash = connector_files.config_hash(pool)
    except ConfigError as error:
        return Plan(None, dataclasses.replace(seen, invalid_config=str(error)))
    return Plan(manifests, dataclasses.replace(seen, config_hash=config_hash))


def _reason_to_hold(seen: Observed) -> str | None:
    if seen.unanswered:
        return "; ".join(f"{call.what}: {call.message}" for call in seen.unanswered)
    if seen.refusals:
        return "; ".join(f"{refusal.kind} {refusal.name}: {refusal.message}" for refusal in seen.refusals)
    if seen.probe is not None and seen.probe.state in WITHHELD:
        return seen.probe.detail
    return None


def _copies_outside(namespaces: Sequence[str], children: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the copies for other namespaces that are in none of these."""
    return [child for child in children if is_copy(child) and child["metadata"]["namespace"] not in namespaces]


class _Calls:
    """Waits for calls of the API server, and notes those that it did not carry out."""

    def __init__(self) -> None:
        self.unanswered: list[Unanswered] = []

    async def answer(self, what: str, call: Awaitable[Answer], otherwise: Default) -> Answer | Default:
        """Return the call's answer, or ``otherwise`` where there is none."""
        try:
            return await call
        except ApiError as error:
            self.unanswered.append(Unanswered(what, error.message))
            return otherwise


class Reconciler:
    """Holds what outlives one reconciliation: the client and the caches."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        settings: Settings,
        *,
        clock: Callable[[], float],
        consumers_of: Callable[[PoolKey], tuple[Consumer, ...]],
        now: Callable[[], str] = _utc_now,
    ) -> None:
        self._client = client
        self._settings = settings
        self._now = now
        self._consumers_of = consumers_of
        self._observer = Observer(client, cache, settings, clock, consumers_of)
        self._consents = Consents(client, settings.probe_seconds, clock)
        self._children = Children(client, cache)
        self._rollouts = Rollouts(Volumes(client))
        self._secrets = SecretValues(client, cache)

    async def reconcile(self, key: PoolKey) -> float | None:
        """Do what is needed now.

        Returns:
            Seconds after which to look again although nothing was seen to change; None: never.

        Raises:
            ApiError: the API server did not do something that it may do the next time. The status says so already, unless the
                pool could not be read or its status could not be written.
        """
        body = await self._observer.pool(key)
        if body is None:
            await self._children.delete_copies(self._observer.children(key))
        if body is None or "deletionTimestamp" in body["metadata"]:
            await self._tell_users(key)
            # Children go by their owner references. Touching them now could only bring them back.
            self._observer.forget(key)
            return None
        try:
            seen = await self._bring_about(key, body)
        except PoolGone:
            return None  # the watch tells of it, and then all that is known of the pool is forgotten
        except Exception:
            # A fault of the operator must not leave a status that says that all is well.
            await self._report(body, Observed(body["metadata"]["generation"], pool=None, fault=True))
            raise
        status = await self._report(body, seen)
        if seen.unanswered:
            raise ApiError(status=0, message="; ".join(f"{call.what}: {call.message}" for call in seen.unanswered))
        return self._next_look(seen, status)

    async def _tell_users(self, key: PoolKey) -> None:
        """Write an Event, once, where Pods of users have the pool that is deleted."""
        event = events.deleted_in_use(self._consumers_of(key))
        if event is None or not self._observer.knows_children(key):
            return
        namespace, name = key
        uids = (owner_uid(child) for child in self._observer.children(key))
        metadata = {"namespace": namespace, "name": name, "uid": next(uids, None) or ""}
        await record(self._client, {"metadata": metadata}, event)

    async def _bring_about(self, key: PoolKey, body: Mapping[str, Any]) -> Observed:
        """Observe, plan, apply and look."""
        try:
            spec = parse_spec(body.get("spec", {}))
            check_templates(spec, self._settings)
        except InvalidSpec as error:
            seen = Observed(generation=body["metadata"]["generation"], pool=None, invalid=str(error))
            return await self._withdraw_unread(key, seen)
        metadata = body["metadata"]
        owner = Owner(self._client, *key, metadata["uid"], is_new="status" not in body)
        seen = await self._observe(key, body, spec, owner)
        planned = plan(seen)
        seen = planned.seen
        if planned.manifests is not None:
            ask = str((metadata.get("annotations") or {}).get(ROLLOUT_NOW, ""))
            seen = await self._apply(key, owner, planned.manifests, seen, ask)
        elif seen.pool is not None and seen.consents_known:
            seen = await self._withdraw(key, seen.pool.shared_with, seen)
        return await self._observer.look(seen)

    async def _observe(self, key: PoolKey, body: Mapping[str, Any], spec: KVCachePoolSpec, owner: Owner) -> Observed:
        """All that the children depend on: the external store, consents, known children, and the pool's own Secrets."""
        metadata, calls = body["metadata"], _Calls()
        probe, (username, sentinel_username) = await self._observer.store_probe(key, spec)
        material = Material(
            store_password="", hash_seed="", external_username=username, sentinel_username=sentinel_username
        )
        pool = Pool(metadata["name"], metadata["namespace"], metadata["uid"], spec, material, self._settings)
        foreign = [name for name in spec.injection.allowed_namespaces if name != pool.namespace]
        answered = await calls.answer("reading namespaces", self._consents.of(key, foreign), None)
        consenting = answered or ()
        pool = dataclasses.replace(pool, shared_with=consenting)
        await calls.answer("reading the pool's objects", self._observer.refresh_children(key, consenting), None)
        refusals: tuple[Refusal, ...] = ()
        try:
            filling = self._secrets.fill(pool, owner, create=not spec.paused)
            pool = await calls.answer("reading or making the pool's Secrets", filling, pool)
        except SecretRefused as error:
            refusals = (error.refusal,)
        return Observed(
            generation=metadata["generation"],
            pool=pool,
            probe=probe,
            refusals=refusals,
            unanswered=tuple(calls.unanswered),
            unconsenting=tuple(name for name in foreign if name not in consenting),
            consents_known=answered is not None,
            children_known=self._observer.knows_children(key),
            config_hash=_last_config_hash(body),
        )

    async def _apply(
        self, key: PoolKey, owner: Owner, manifests: Sequence[Manifest], seen: Observed, ask: str
    ) -> Observed:
        """Decide which workloads keep their Pods for now, and write the rest.

        Args:
            ask: the value of the pool's annotation that asks for all that waits.
        """
        assert seen.pool is not None  # noqa: S101  (plan looked)
        calls = _Calls()
        known = await calls.answer("reading the pool's workloads", self._children.workloads(manifests), None)
        if known is None:
            return dataclasses.replace(seen, unanswered=tuple(calls.unanswered))
        children = self._observer.children(key)
        live = {key_of(child): child for child in children} | {k: body for k, body in known.items() if body}
        deciding = self._rollouts.decide(seen.pool, manifests, live, ask=ask)
        rollout = await calls.answer("growing claims", deciding, None)
        if rollout is None:
            return dataclasses.replace(seen, unanswered=tuple(calls.unanswered))
        refusals, unanswered = await self._children.apply(rollout.manifests, owner=owner, known=known)
        pruning = self._children.prune(
            self._observer.children(key), rollout.manifests, owner=owner.uid, kept=rollout.kept
        )
        await calls.answer("deleting what is no longer wanted", pruning, None)
        return dataclasses.replace(
            seen,
            refusals=refusals,
            unanswered=(*unanswered, *calls.unanswered),
            waiting=tuple(rollout.waiting),
            claim_faults=tuple(rollout.faults),
        )

    async def _withdraw(self, key: PoolKey, consenting: Sequence[str], seen: Observed) -> Observed:
        """Delete the copies in other namespaces than these, also where nothing else is written.

        They have passwords in them, and whoever owns a namespace must not wait for the pool's author.
        """
        calls = _Calls()
        deleting = self._children.delete_copies(_copies_outside(consenting, self._observer.children(key)))
        await calls.answer("deleting copies in namespaces that do not take the pool", deleting, None)
        return dataclasses.replace(seen, unanswered=(*seen.unanswered, *calls.unanswered))

    async def _withdraw_unread(self, key: PoolKey, seen: Observed) -> Observed:
        """Do the same for a spec that can't be read: only the namespaces that have copies are known."""
        calls = _Calls()
        await calls.answer("reading the pool's objects", self._observer.refresh_children(key, ()), None)
        copies = _copies_outside((), self._observer.children(key))
        namespaces = sorted({str(copy["metadata"]["namespace"]) for copy in copies})
        consenting = await calls.answer("reading namespaces", self._consents.of(key, namespaces), None)
        seen = dataclasses.replace(seen, unanswered=tuple(calls.unanswered))
        return seen if consenting is None else await self._withdraw(key, consenting, seen)

    async def _report(self, body: Mapping[str, Any], seen: Observed) -> dict[str, Any]:
        """Write the status if it says something new, and Events of what changed."""
        status = build_status(seen, body.get("status", {}), self._now())
        if await write_status(self._client, body, status):
            ready = status["conditions"][0]
            metadata = body["metadata"]
            _log.info(
                "%s/%s: Ready=%s %s: %s",
                metadata["namespace"],
                metadata["name"],
                ready["status"],
                ready["reason"],
                ready["message"],
            )
            for event in events.of(seen, body.get("status", {}), status):
                await record(self._client, body, event)
        return status

    def _next_look(self, seen: Observed, status: Mapping[str, Any]) -> float:
        """Watches tell of children. External stores, Pods, refusals, claims and namespaces have none, so they are looked at."""
        is_ready = status["conditions"][0]["status"] == "True"
        growing = any(one.until is WaitsUntil.CLAIMS_GROWN for one in seen.waiting or ())
        unwatched = seen.probe is not None or seen.unconsenting or seen.claim_faults or growing or not is_ready
        return self._settings.probe_seconds if unwatched else self._settings.resync_seconds
