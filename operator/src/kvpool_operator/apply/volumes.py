"""Growing the claims of a StatefulSet, step by step, with all Pods going on."""

from __future__ import annotations

import enum
import logging
from typing import Any

from kvpool_operator.apply import claims
from kvpool_operator.apply.claims import Growth, Object
from kvpool_operator.kube import CLAIM, STATEFUL_SET, Client, NotFound, Refused
from kvpool_operator.status.observed import ClaimFault

_log = logging.getLogger(__name__)
_RETAIN = {"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain"}}}


class Step(enum.Enum):
    """How far a growth has come."""

    GROWING = enum.auto()
    """The claims are not yet as wanted. Look again soon, since no watch tells of claims."""
    REPLACED = enum.auto()
    """The StatefulSet is deleted, and its Pods and claims go on until the wanted one is there."""


class Volumes:
    """All writes to claims."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def grow(self, live: Object, wanted: Object, growth: Growth) -> Step | ClaimFault:
        """Take the next step towards larger claims.

        The API server is asked first whether it would let all claims grow: it knows their classes
        and the quota, and a growth that stops at the second of three claims would be worse than
        none.

        Raises:
            ApiError: the API server did not do something that it may do the next time.
        """
        found = await self._claims(live)
        small = claims.small(found, live, growth)
        for dry_run in (True, False):
            for name, size in small.items():
                fault = await self._enlarge(wanted, name, size, dry_run=dry_run)
                if fault is not None:
                    return fault
        if small or claims.unfinished(found, live, growth) or not await self._are_loose(live, found):
            return Step.GROWING
        await self._delete(live)
        return Step.REPLACED

    async def loosen(self, live: Object) -> bool:
        """See to it that no claim ends with a StatefulSet that is to be deleted.

        Returns:
            whether that is so already.

        Raises:
            ApiError: as :meth:`grow`.
        """
        if claims.ends_with_claims(live):
            metadata = live["metadata"]
            await self._client.merge(STATEFUL_SET, metadata["namespace"], metadata["name"], _RETAIN)
            return False
        return await self._are_loose(live, await self._claims(live))

    async def _are_loose(self, live: Object, found: list[dict[str, Any]]) -> bool:
        """Return whether no claim belongs to the StatefulSet, and take it off those that do.

        Kubernetes' controller puts it on again while it has not seen that claims are to be retained,
        and then the garbage collector may take a claim for one of an owner that is gone.
        """
        if not claims.retains(live):
            return False
        owned = claims.owned(found, live)
        for claim in owned:
            metadata = claim["metadata"]
            others = {"metadata": {"ownerReferences": claims.other_owners(claim, live)}}
            await self._client.merge(CLAIM, metadata["namespace"], metadata["name"], others)
        return not owned

    async def _claims(self, live: Object) -> list[dict[str, Any]]:
        """Return the claims of the StatefulSet's Pods, also of Pods that are no longer wanted."""
        labels = live["spec"]["selector"]["matchLabels"]
        found = await self._client.list(CLAIM, live["metadata"]["namespace"], labels=labels)
        return claims.made_by(found, live)

    async def _enlarge(self, wanted: Object, name: str, size: str, *, dry_run: bool) -> ClaimFault | None:
        namespace = wanted["metadata"]["namespace"]
        if not dry_run:
            _log.info("growing PersistentVolumeClaim %s/%s to %s", namespace, name, size)
        request = {"spec": {"resources": {"requests": {"storage": size}}}}
        try:
            await self._client.merge(CLAIM, namespace, name, request, dry_run=dry_run)
        except NotFound:
            return None
        except Refused as error:
            return claims.cannot_grow(wanted, name, error.message)
        return None

    async def _delete(self, live: Object) -> None:
        """Delete the StatefulSet alone."""
        metadata = live["metadata"]
        namespace = metadata["namespace"]
        name = metadata["name"]
        _log.info("replacing StatefulSet %s/%s under its Pods", namespace, name)
        try:
            await self._client.delete(
                STATEFUL_SET,
                metadata["namespace"],
                metadata["name"],
                uid=metadata["uid"],
                orphan=True,
            )
        except NotFound:
            return
