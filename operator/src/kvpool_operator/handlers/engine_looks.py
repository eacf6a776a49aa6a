"""Asks each engine in a user's Pod once what became of kvpool in it, when its container is ready.

An engine says it at its start and not differently later, so one answer for each start of a container
is enough. Where none comes (a NetworkPolicy, TLS, a server that is none of vLLM's), the engine is asked
again, at growing intervals, as long as its Pod is there.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from kvpool_operator.handlers.queue import WorkQueue
from kvpool_operator.handlers.workers import Workers
from kvpool_operator.observe.consumers import Consumers, PodKey
from kvpool_operator.observe.gather import PoolKey
from kvpool_operator.status.observed import EngineAddress, EngineSays

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
AT_A_TIME = 4
"""Engines that are asked at once. An engine that does not answer holds one of these for some seconds."""


class EngineLooks:
    """What is done with one Pod; a work queue hands them out. One event loop."""

    def __init__(
        self,
        consumers: Consumers,
        ask: Callable[[EngineAddress], Awaitable[EngineSays | None]],
        add: Callable[[PoolKey], None],
    ) -> None:
        """Args:
        ask: returns what an engine says; None: nothing is known yet.
        add: takes the pools whose status says something new by it.
        """
        self._consumers = consumers
        self._ask = ask
        self._add = add
        self._vain: Counter[PodKey] = Counter()

    async def look(self, where: PodKey) -> float | None:
        """Ask the engine in a Pod, if it was not heard yet.

        Returns:
            Seconds until it shall be asked again; None: never, unless its Pod changes.
        """
        address = self._consumers.unheard(where)
        says = None if address is None else await self._ask(address)
        if address is None or says is not None:
            self._vain.pop(where, None)
        if address is None:
            return None
        if says is not None:
            for pool in self._consumers.heard(where, address, says):
                self._add(pool)
            return None
        self._vain[where] += 1
        return min(FIRST_PAUSE_S * 2.0 ** min(self._vain[where] - 1, 16), LONGEST_PAUSE_S)


def workers(looks: EngineLooks) -> Workers:
    """Return what asks engines, in the order in which their Pods are added."""
    queue: WorkQueue[PodKey] = WorkQueue(clock=time.monotonic, random=random.random)
    return Workers(queue, looks.look, count=AT_A_TIME)
