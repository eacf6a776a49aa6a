"""Ends what waits for longer than it may, though everything that is waited for has a deadline of its own: the last one, for a
rank or a thread that does not answer.

A *lookup* can always be ended: vLLM holds nothing for a request that was told to come back, so it computes instead. A *load*
cannot: a rank may still write into the request's blocks, which are nobody else's before the rank has said that it ended (or
has reported itself broken, which ends its loads). Such a load is told, and until it ends no other one is begun, since it would
wait in vain, too.

One thread. Steps are counted as well as seconds, because a long step of the engine is no rank's silence.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable

from kvpool_connector.log import get_logger
from kvpool_connector.transfer import Ticket

logger = get_logger(__name__)

MORE_S = 0.2
"""What a lookup may wait beyond its question and another request's load of the same blocks: the first measurement of a tier, and
some steps."""
LEAST_ASKED = 3
"""So often a request is told to come back, however long a step takes: the question, a measurement, and a load go out with one
each."""
MOST_STEP_S = 1.0
"""What lies longer between two questions of vLLM counts as so much: it had no room for the request, and did not ask."""
LOAD_MORE_S, LOAD_MORE_STEPS = 5.0, 20
"""What a load may take beyond its budget: its copy, and the steps until all ranks were heard."""


@dataclasses.dataclass(slots=True)
class _Deferred:
    asked_at: float
    asked: int = 0
    waited_s: float = 0.0
    ended: bool = False


@dataclasses.dataclass(slots=True)
class _Load:
    req_id: str
    began: float
    due: float
    late_steps: int = 0


class Watchdog:
    """Who waits, and since when."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deferred: dict[str, _Deferred] = {}
        self._loads: dict[Ticket, _Load] = {}
        self._overdue: set[Ticket] = set()
        self.counts: Counter[str] = Counter()
        """What was ended or told; the owner takes and clears it."""

    # ---- lookups -------------------------------------------------------------------------------------------

    def ends_wait(self, req_id: str, bound_s: float) -> bool:
        """Note that a request was told to come back, and return whether it has waited for too long.

        Args:
            bound_s: what its question and a load of its blocks may take.
        """
        now = self._clock()
        wait = self._deferred.setdefault(req_id, _Deferred(now))
        wait.asked += 1
        wait.waited_s += min(now - wait.asked_at, MOST_STEP_S)
        wait.asked_at = now
        if wait.ended:
            return True
        if wait.asked <= LEAST_ASKED or wait.waited_s < bound_s + MORE_S:
            return False
        wait.ended = True
        self.counts["lookup waited too long"] += 1
        logger.warning(
            "request %s: nothing said for %.1f s what can be loaded for it; it is computed", req_id, wait.waited_s
        )
        return True

    def answered(self, req_id: str) -> None:
        """The request waits no longer."""
        wait = self._deferred.get(req_id)
        if wait is not None and not wait.ended:
            del self._deferred[req_id]

    def forget(self, req_id: str) -> None:
        """The request is finished."""
        self._deferred.pop(req_id, None)

    # ---- loads ---------------------------------------------------------------------------------------------

    @property
    def stuck(self) -> bool:
        """Whether a load is overdue: another one would wait for the same rank."""
        return bool(self._overdue)

    def load_begins(self, ticket: Ticket, req_id: str, budget_s: float) -> None:
        """Its fetches may take so long."""
        now = self._clock()
        self._loads[ticket] = _Load(req_id, now, now + budget_s + LOAD_MORE_S)

    def load_ended(self, ticket: Ticket) -> None:
        """All ranks said so."""
        load = self._loads.pop(ticket, None)
        if load is not None and ticket in self._overdue:
            self._overdue.remove(ticket)
            logger.warning("request %s: its load ended after %.1f s", load.req_id, self._clock() - load.began)

    def end_step(self) -> None:
        """Look for loads that are overdue. Each is told once."""
        if not self._loads:
            return
        now = self._clock()
        for ticket, load in self._loads.items():
            if now < load.due or ticket in self._overdue:
                continue
            load.late_steps += 1
            if load.late_steps > LOAD_MORE_STEPS:
                self._overdue.add(ticket)
                self.counts["load overdue"] += 1
                logger.error(
                    "request %s: some rank has not ended its load for %.1f s. The request waits for it, since the rank "
                    "may still write into its blocks; until then nothing else is loaded", load.req_id, now - load.began,
                )  # fmt: skip

    def reset(self) -> None:
        """All loads are nobody's from now on."""
        self._loads.clear()
        self._overdue.clear()
