"""kopf as informer: watches that fill the cache and the queue. Handlers act on nothing and write nothing, so no finalizer,
no annotation and no event of kopf's ever reaches an object."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kopf

from kvpool_operator.api import GROUP, PLURAL, VERSION
from kvpool_operator.desired.names import MANAGED_BY, MANAGED_BY_LABEL
from kvpool_operator.injection.names import CONSUMER
from kvpool_operator.kube import CHILD_KINDS, POD
from kvpool_operator.observe.cache import Cache, pool_of
from kvpool_operator.observe.consumers import Consumers, PodKey
from kvpool_operator.observe.gather import PoolKey
from kvpool_operator.observe.pools import Pools


class _Patience:
    """The pauses between tries of kopf's requests, in seconds: there is always another one.

    A watch that is refused (the Role of one namespace is gone) or gets no answer is so for itself.
    With an end to the tries it would end kopf, and with kopf the operator for all namespaces.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0, 2.0, 4.0, 8.0), itertools.repeat(15.0))


async def watch(
    handlers: kopf.OperatorRegistry,
    namespaces: Collection[str],
    *,
    started: asyncio.Event,
    take_signals: Callable[[], None],
) -> None:
    """Run kopf until cancelled.

    Args:
        namespaces: empty: all.
        started: is set when the watches were begun.
        take_signals: is called when kopf has taken the process's signals for itself. It ends in its own time
            and ends other tasks, while the Lease has to be given back first.
    """
    before = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=handlers,
        settings=kopf_settings(),
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=started,
    )
    take_signals()
    await kopf.run_tasks(tasks, ignored=before)


def registry(
    cache: Cache,
    pools: Pools,
    consumers: Consumers,
    add: Callable[[PoolKey], None],
    add_later: Callable[[PoolKey], None],
    add_engine: Callable[[PodKey], None],
) -> kopf.OperatorRegistry:
    """All handlers, bound to these caches and this queue.

    Args:
        add_later: for what comes in bursts and is in no hurry: a Deployment of others that scales.
        add_engine: takes Pods whose engine was not heard yet.
    """
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # Kubeconfig first, as in the client of our own writes: both must talk to the same cluster.
        return kopf.login_with_kubeconfig(**kwargs) or kopf.login_with_service_account(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def pool_changed(event: kopf.RawEvent, namespace: str | None, name: str | None, **_: Any) -> None:
        body: dict[str, Any] = dict(event["object"])
        if event["type"] == "DELETED":
            pools.drop(body)
        else:
            pools.put(body)
        add((str(namespace), str(name)))

    @kopf.on.event(POD.group, POD.version, POD.plural, registry=handlers)
    async def consumer_changed(event: kopf.RawEvent, **_: Any) -> None:
        body: dict[str, Any] = dict(event["object"])
        for key in consumers.drop(body) if event["type"] == "DELETED" else consumers.put(body):
            add_later(key)
        where = str(body["metadata"]["namespace"]), str(body["metadata"]["name"])
        if consumers.unheard(where) is not None:
            add_engine(where)

    async def child_changed(event: kopf.RawEvent, **_: Any) -> None:
        body: dict[str, Any] = dict(event["object"])
        if event["type"] == "DELETED":
            cache.drop(body)
        elif not cache.put(body):
            return  # the echo of a write of ours
        pool = pool_of(body)
        if pool:
            add(pool)

    for kind in CHILD_KINDS:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=handlers)(child_changed)
    return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """kopf without anything that writes or that needs rights beyond list and watch."""
    configured = kopf.OperatorSettings()
    configured.peering.standalone = True
    configured.posting.enabled = False
    configured.scanning.disabled = True
    configured.networking.error_backoffs = _Patience()
    configured.watching.chunk_size = 500
    configured.watching.label_selectors[POD.group, POD.version, POD.plural] = CONSUMER
    for kind in CHILD_KINDS:
        configured.watching.label_selectors[kind.group, kind.version, kind.plural] = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
    return configured
