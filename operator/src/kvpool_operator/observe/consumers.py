"""Pods of others that name a pool: those that the webhook saw by watch, those that it missed by a list of all Pods.

A watch on all Pods would be costly in a large cluster, and annotations can't be selected by. So the webhook labels what it
saw, the watch selects by this label, and the list asks for metadata alone, once in ``resyncSeconds``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Set
from typing import Any

from kvpool_operator.desired import payload
from kvpool_operator.injection import names
from kvpool_operator.kube import POD, ApiError, Client, Refused
from kvpool_operator.observe.engine_address import address_of
from kvpool_operator.observe.gather import PoolKey
from kvpool_operator.observe.parents import Parents
from kvpool_operator.status.observed import Consumer, EngineAddress, EngineSays, Seen

_log = logging.getLogger(__name__)
PodKey = tuple[str, str]
"""Namespace and name."""


def record(pod: Mapping[str, Any], reference: str | None = None) -> Consumer | None:
    """What is kept of a Pod; None where it names no pool.

    Args:
        reference: the pool that its parent names.
    """
    metadata = pod["metadata"]
    annotations = names.annotations_of(pod)
    named = annotations.get(names.POOL) or reference
    if not named or "deletionTimestamp" in metadata:
        return None
    try:
        pool = names.pool_key(named, metadata["namespace"])
    except names.BadReference:  # the Pod says so itself, in its annotation
        return None
    seen, crash = _seen(pod)
    return Consumer(
        namespace=metadata["namespace"],
        pod=metadata["name"],
        pool=pool,
        mark=annotations.get(names.INJECTED, ""),
        skip=annotations.get(names.SKIP_REASON, ""),
        version=int(metadata["resourceVersion"]),
        workload=names.workload(pod),
        seen=seen,
        crash=crash,
        address=_engine_address(pod) if seen is Seen.READY else None,
        warning=annotations.get(names.WARNING, ""),
    )


def _engine_address(pod: Mapping[str, Any]) -> EngineAddress | None:
    changed = (one for one in pod.get("spec", {}).get("containers", ()) if _is_changed(one))
    container = next(changed, None)
    return None if container is None else address_of(pod, container)


def _seen(pod: Mapping[str, Any]) -> tuple[Seen, str]:
    """Return what the changed container does, and which container crashed and how.

    Where no probe asks vLLM, a container is ready as soon as it runs. So there, one that crashed
    before is still taken for one that crashes.
    """
    status = pod.get("status", {})
    changed = [one for one in pod.get("spec", {}).get("containers", ()) if _is_changed(one)]
    asked = any("readinessProbe" in one or "startupProbe" in one for one in changed)
    known = {one["name"] for one in changed}
    mains = [one for one in status.get("containerStatuses", ()) if one["name"] in known]
    inits = [one for one in status.get("initContainerStatuses", ()) if one["name"] == payload.NAME]
    crash = next((text for one in (*inits, *mains) if (text := _crash(one))), "")
    is_ready = any(one.get("ready") for one in mains)
    if crash and not (is_ready and asked):
        return Seen.CRASHED, crash
    if names.ray_cluster(pod) is not None:
        return Seen.RAY, ""
    return (Seen.READY if is_ready else Seen.NOT_READY), ""


def _is_changed(container: Mapping[str, Any]) -> bool:
    return any(mount["name"] == names.VOLUME_CONFIG for mount in container.get("volumeMounts", ()))


def _crash(status: Mapping[str, Any]) -> str:
    """Return how a container's last run ended, if it ended with an error; else nothing.

    The text is the same from one crash to the next, so that a crash loop is not news again and again.
    """
    now = status.get("state", {})
    ended = now.get("terminated") or status.get("lastState", {}).get("terminated") or {}
    if ended.get("exitCode"):
        return f"container {status['name']} ended: {ended.get('reason', 'Error')}, exit code {ended['exitCode']}"
    reason = now.get("waiting", {}).get("reason")
    return f"container {status['name']} waits: {reason}" if reason == "CrashLoopBackOff" else ""


class Consumers:
    """The newest known state of each such Pod, found by name and by pool. One event loop, no locks."""

    def __init__(self) -> None:
        self._pods: dict[PodKey, Consumer] = {}
        self._of_pool: dict[PoolKey, dict[PodKey, Consumer]] = {}
        self._touched: set[PodKey] = set()
        """Shown by the watch since the present list began, which may not have them or have them still."""

    def put(self, pod: Mapping[str, Any]) -> set[PoolKey]:
        """Take over a Pod that the watch showed; returns the pools for which that is news."""
        where = pod["metadata"]["namespace"], pod["metadata"]["name"]
        known = self._pods.get(where)
        now = record(pod)
        self._touched.add(where)
        # The same version may be known from a list, which says nothing of containers.
        if known is not None and now is not None and now.version < known.version:
            return set()
        if known is not None and now is not None and known.address == now.address:
            now = dataclasses.replace(now, says=known.says)
        self._set(where, now)
        return _pools_of(known, now) if _news(known) != _news(now) else set()

    def unheard(self, where: PodKey) -> EngineAddress | None:
        """Return where the engine of a Pod is to be asked; None: nowhere, or it was heard already."""
        one = self._pods.get(where)
        return None if one is None or one.says is not None or not one.mark else one.address

    def heard(self, where: PodKey, address: EngineAddress, says: EngineSays) -> set[PoolKey]:
        """Take over what the engine at this address said; returns the pools for which that is news."""
        one = self._pods.get(where)
        if one is None or one.address != address or one.says == says:
            return set()
        self._set(where, dataclasses.replace(one, says=says))
        return {one.pool}

    def drop(self, pod: Mapping[str, Any]) -> set[PoolKey]:
        """Forget a Pod that the watch showed as deleted; returns the pool for which that is news."""
        where = pod["metadata"]["namespace"], pod["metadata"]["name"]
        known = self._pods.get(where)
        self._touched.add(where)
        self._set(where, None)
        return _pools_of(known)

    def begin_list(self) -> None:
        """A list of all Pods is asked for now."""
        self._touched.clear()

    def replace(
        self,
        listed: Iterable[Consumer],
        unclear: Set[PodKey] = frozenset(),
        unseen: Set[str] = frozenset(),
    ) -> set[PoolKey]:
        """Take over what that list showed.

        Args:
            unclear: Pods of which it could not be found out whether they name a pool. What is known of them stays.
            unseen: namespaces that the list could not look into. What is known of their Pods stays.

        Returns:
            The pools for which that is news.
        """
        shown = {(one.namespace, one.pod): one for one in listed}
        changed: set[PoolKey] = set()
        for where in self._pods.keys() | shown.keys():
            if where in self._touched or where in unclear or where[0] in unseen:
                continue
            known = self._pods.get(where)
            now = _with_containers_of(known, shown[where]) if where in shown else None
            if _news(known) != _news(now):
                changed |= _pools_of(known, now)
            self._set(where, now)
        return changed

    def of(self, pool: PoolKey) -> tuple[Consumer, ...]:
        """Return the Pods that name a pool. This takes as long as there are such Pods."""
        return tuple(self._of_pool.get(pool, {}).values())

    def _set(self, where: PodKey, now: Consumer | None) -> None:
        """Remember a Pod in the place of what is known of it; None: it is none of these any more."""
        known = self._pods.pop(where, None)
        if known is not None:
            pods = self._of_pool[known.pool]
            del pods[where]
            if not pods:
                del self._of_pool[known.pool]
        if now is not None:
            self._pods[where] = now
            self._of_pool.setdefault(now.pool, {})[where] = now


def _news(one: Consumer | None) -> tuple[object, ...]:
    """Return what a pool's status says of a Pod."""
    return () if one is None else (one.pool, one.mark, one.skip, one.seen, one.crash, one.says)


def _with_containers_of(known: Consumer | None, listed: Consumer) -> Consumer:
    """Return what a list showed, with what the watch showed of the containers: the list is of metadata alone."""
    if known is None:
        return listed
    return dataclasses.replace(listed, seen=known.seen, crash=known.crash, address=known.address, says=known.says)


def _pools_of(*ones: Consumer | None) -> set[PoolKey]:
    return {one.pool for one in ones if one is not None}


async def scan(
    client: Client, parents: Parents, namespaces: tuple[str, ...]
) -> tuple[list[Consumer], frozenset[PodKey], frozenset[str]]:
    """Look at every Pod, one page of the list after the other: of what names no pool nothing is kept.

    Returns:
        Those that name a pool, themselves or by their parent; those whose parent could not be asked for; and the
        namespaces that the operator may not look into.

    Raises:
        ApiError: the API server can't be reached, or lets the operator in nowhere.
    """
    found: list[Consumer] = []
    unclear: set[PodKey] = set()
    silent: set[tuple[str, names.Parent]] = set()
    refused: dict[str, Refused] = {}
    for namespace in namespaces or ("",):
        try:
            async for page in client.pages(POD, namespace, labels={}, metadata_only=True):
                for pod in page.items:
                    await _look(pod, parents, found, unclear, silent)
        except Refused as error:
            _log.warning("namespace %s is left out: %s", namespace or "(all)", error.message)
            refused[namespace] = error
    if len(refused) == len(namespaces or ("",)):
        raise next(iter(refused.values()))
    return found, frozenset(unclear), frozenset(refused)


async def _look(
    pod: Mapping[str, Any],
    parents: Parents,
    found: list[Consumer],
    unclear: set[PodKey],
    silent: set[tuple[str, names.Parent]],
) -> None:
    """Put a Pod where it belongs. ``silent`` holds parents that could not be asked for, and gets more."""
    reference = None
    where = str(pod["metadata"]["namespace"]), str(pod["metadata"]["name"])
    parent = names.parent(pod)
    if parent is not None and names.POOL not in names.annotations_of(pod):
        asked = where[0], parent
        if asked not in silent:
            try:
                reference = await parents.pool(*asked)
            except ApiError as error:
                _log.warning("%s %s/%s: %s", parent.kind, where[0], parent.name, error.message)
                silent.add(asked)
        if asked in silent:
            unclear.add(where)
            return
    one = record(pod, reference)
    if one is not None:
        found.append(one)
