"""How long the event loop keeps everybody waiting: while it reads one large text, the webhook answers nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PAUSE_S = 0.005


class Turns(Collector):
    """Measures the longest turn of the loop since it was last asked for, in seconds of CPU time of its thread: on a host that is
    busy with other work, time on the clock would say more about that work."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        """Measure for ever. A pause ends in the first turn after it is over, so what the thread computed meanwhile is about
        one turn."""
        while True:
            began = time.thread_time()
            await asyncio.sleep(_PAUSE_S)
            self.longest_s = max(self.longest_s, time.thread_time() - began)

    def collect(self) -> Iterable[Metric]:
        """Return the longest turn since this was last called, and begin anew."""
        name = "kvpool_operator_longest_turn_seconds"
        family = GaugeMetricFamily(name, "Longest turn of the event loop since the last look.", self.longest_s)
        self.longest_s = 0.0
        return [family]
