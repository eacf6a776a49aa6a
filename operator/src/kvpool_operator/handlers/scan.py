"""Looking for Pods that the webhook missed: a list of all Pods, now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kvpool_operator.api import Settings
from kvpool_operator.kube import ApiError, Client
from kvpool_operator.observe.consumers import Consumers, scan
from kvpool_operator.observe.gather import PoolKey
from kvpool_operator.observe.parents import Parents

_log = logging.getLogger(__name__)


_RETRY_SECONDS = 15.0
"""Until the first list, for which the operator waits before it is ready."""


async def run(
    client: Client,
    consumers: Consumers,
    parents: Parents,
    settings: Settings,
    add: Callable[[PoolKey], None],
    listed: Callable[[], None],
) -> None:
    """Look for them until cancelled.

    Args:
        add: takes the pools whose Pods changed.
        listed: is called after each list that was taken over.
    """
    pause = min(_RETRY_SECONDS, settings.resync_seconds)
    while True:
        try:
            consumers.begin_list()
            for key in consumers.replace(*await scan(client, parents, settings.watch_namespaces)):
                add(key)
            listed()
            pause = settings.resync_seconds
        except ApiError as error:
            _log.warning("looking for Pods of others: %s", error.message)
        await asyncio.sleep(pause)
