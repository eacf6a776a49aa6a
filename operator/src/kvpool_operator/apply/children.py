"""Bringing the children of one pool to what is desired, with as few requests as that takes.

A quiet pool costs no request at all: everything is compared with the watch cache first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from typing import Any

from kvpool_operator.apply.compare import HASH_ANNOTATION, holds, sign
from kvpool_operator.apply.owner import Owner
from kvpool_operator.desired import Manifest
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.names import COMPONENT_LABEL
from kvpool_operator.kube import ApiError, Client, NotFound, Refused, resource_of
from kvpool_operator.observe.cache import Cache, Key, is_copy, is_going, key_of, owner_uid, pool_of
from kvpool_operator.status.observed import Refusal, Unanswered

_log = logging.getLogger(__name__)

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
"""Kinds that have Pods, and claims: they are never deleted to be made again."""
_FROZEN = ("immutable", "may not change once set")
"""How the API server says that a field can't be changed: of ConfigMaps and Secrets, of Services."""


class Children:
    """Applies and prunes. Holds what the API server made of our manifests, to recognise it."""

    def __init__(self, client: Client, cache: Cache) -> None:
        self._client = client
        self._cache = cache
        self._accepted: dict[str, str] = {}
        """uid to the digest of (what was applied, what the API server made of it)."""

    async def workloads(self, manifests: Sequence[Manifest]) -> dict[Key, Mapping[str, Any] | None]:
        """Return the workloads of the manifests as they are, with None for each that there is not.

        Raises:
            ApiError: the API server did not tell.
        """
        return {
            key_of(manifest): self._cache.get(key_of(manifest)) or await self._read(manifest)
            for manifest in manifests
            if manifest["kind"] in WORKLOADS
        }

    async def apply(
        self,
        manifests: Sequence[Manifest],
        *,
        owner: Owner,
        known: Mapping[Key, Mapping[str, Any] | None],
    ) -> tuple[tuple[Refusal, ...], tuple[Unanswered, ...]]:
        """Write those that differ, in order. One that can't be written doesn't keep the others from being written, unless the
        API server is not reached at all.

        Args:
            known: objects that were looked for a moment ago.

        Returns:
            what was refused, and what the API server did not do although it may do it the next time.

        Raises:
            PoolGone: the pool was deleted meanwhile.
        """
        refusals: list[Refusal] = []
        unanswered: list[Unanswered] = []
        for manifest in manifests:
            try:
                await self._apply_one(sign(manifest), owner, known)
            except (Refused, NotFound) as error:  # not found: the namespace of a copy
                refusals.append(_refusal(manifest, error.message))
            except ApiError as error:
                unanswered.append(
                    Unanswered(f"writing {manifest['kind']} {manifest['metadata']['name']}", error.message)
                )
                if not error.status:
                    break
        return tuple(refusals), tuple(unanswered)

    async def prune(
        self,
        children: Sequence[Mapping[str, Any]],
        manifests: Sequence[Manifest],
        *,
        owner: str,
        kept: Set[Key],
    ) -> None:
        """Delete children of this very pool that are no longer desired.

        Args:
            kept: those that stay all the same.
        """
        wanted = {key_of(manifest) for manifest in manifests} | kept
        for child in children:
            if key_of(child) not in wanted and (owner_uid(child) == owner or is_copy(child)):
                await self._delete(child)

    async def delete_copies(self, children: Sequence[Mapping[str, Any]]) -> None:
        """Delete what a pool that is gone has left in other namespaces; the rest goes by its owner references."""
        for child in children:
            if is_copy(child):
                await self._delete(child)

    async def _delete(self, child: Mapping[str, Any]) -> None:
        if is_going(child):
            return
        metadata = child["metadata"]
        _log.info("%s %s/%s is no longer wanted", child["kind"], metadata["namespace"], metadata["name"])
        try:
            await self._client.delete(resource_of(child), metadata["namespace"], metadata["name"], uid=metadata["uid"])
        except (NotFound, Refused):
            return
        except ApiError as error:
            if error.status != 409:  # somebody made a namesake: not ours to delete
                raise

    async def _apply_one(self, wanted: Manifest, owner: Owner, known: Mapping[Key, Mapping[str, Any] | None]) -> None:
        key = key_of(wanted)
        live = self._cache.get(key)
        if live is None:
            live = known[key] if key in known else await self._read(wanted)
        if live is not None:
            if owner_uid(live) != owner.uid and not (is_copy(live) and pool_of(live) == pool_of(wanted)):
                raise Refused(status=409, message=taken(live))
            if is_going(live) or self._is_as_wanted(live, wanted):
                return
        else:
            await owner.confirm()
        answer = await self._write(wanted, live)
        self._accepted[answer["metadata"]["uid"]] = _memory(answer, wanted)
        self._cache.put(answer)

    async def _read(self, wanted: Manifest) -> dict[str, Any] | None:
        """An object that no watch has shown: made a moment ago, or by somebody else without our labels."""
        metadata = wanted["metadata"]
        try:
            return await self._client.get(resource_of(wanted), metadata["namespace"], metadata["name"])
        except NotFound:
            return None

    async def _write(self, wanted: Manifest, live: Mapping[str, Any] | None) -> dict[str, Any]:
        resource, metadata = resource_of(wanted), wanted["metadata"]
        verb = "changing" if live is not None else "creating"
        _log.info("%s %s %s/%s", verb, resource.kind, metadata["namespace"], metadata["name"])
        try:
            return await self._client.apply(resource, wanted)
        except Refused as error:
            is_frozen = error.status == 422 and any(word in error.message for word in _FROZEN)
            if not is_frozen or live is None or wanted["kind"] in WORKLOADS:
                raise
            # Somebody froze it. It is ours, and no Pod ends with it, so make it again.
            _log.warning("%s %s/%s: %s", resource.kind, metadata["namespace"], metadata["name"], error.message)
            await self._client.delete(resource, metadata["namespace"], metadata["name"], uid=live["metadata"]["uid"])
            return await self._client.apply(resource, wanted)

    def _is_as_wanted(self, live: Mapping[str, Any], wanted: Manifest) -> bool:
        annotations = live["metadata"].get("annotations", {})
        if annotations.get(HASH_ANNOTATION) != wanted["metadata"]["annotations"][HASH_ANNOTATION]:
            return False
        return holds(live, wanted) or self._accepted.get(live["metadata"]["uid"]) == _memory(live, wanted)


def _memory(live: Mapping[str, Any], wanted: Manifest) -> str:
    """What the API server, and whoever mutates at admission, made of a manifest. Seeing it again is no drift."""
    content = {key: value for key, value in live.items() if key not in ("metadata", "status")}
    metadata = {key: live["metadata"].get(key) for key in ("labels", "annotations", "ownerReferences")}
    return digest([wanted, content, metadata])


def taken(live: Mapping[str, Any]) -> str:
    """Return what to say of an object of somebody else's that has the name of a child."""
    name = live["metadata"]["name"]
    return f"{name} exists and does not belong to this pool: delete or rename it, or rename the pool or the engine"


def _refusal(manifest: Manifest, message: str) -> Refusal:
    metadata = manifest["metadata"]
    component = metadata["labels"].get(COMPONENT_LABEL, "")
    return Refusal(kind=manifest["kind"], name=metadata["name"], message=message, component=component)
