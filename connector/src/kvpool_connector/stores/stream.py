"""What clients of a request-and-reply protocol over one TCP connection share: batches within a window, the breaker, and the
replacement of a connection that the server closed while it was idle.

A server that must build all replies of a long pipeline at once halves its own speed, so at most about 4 MiB are asked for
and not yet read; with one value of 1 MiB at a time it waits for the client a quarter of the time (docs/figures.md).

A server that is silent for ``stall_ms`` is given up. Writes are exempt: what lies between here and
the server (a slow link's queues, a proxy) may hold a whole window that was taken and not delivered
yet, and nobody waits for them.
"""

from __future__ import annotations

import abc
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

from kvpool_connector.config.remote import Timeouts
from kvpool_connector.log import get_logger
from kvpool_connector.stores.base import Loan, Outcome
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.connection import Buffer, Connection, Late, ProtocolDoubt, Stalled
from kvpool_connector.stores.refusals import event_of

logger = get_logger(__name__)

WINDOW_BYTES = 4 << 20
"""Asked for (or sent) but not yet answered; at least one request is always in flight."""
WINDOW_REQUESTS = 256
"""Requests in flight."""


class Refused(Exception):
    """The server answered, and is not to be used. The text holds no secret."""

    def __init__(self, text: str, word: str = "") -> None:
        """Args:
        word: the server's own word for the kind of its error, if it was one.
        """
        super().__init__(text)
        self.word = word


class Unreadable(Exception):
    """The server has the value, but drops the connection where it should send it."""


class StreamStore(abc.ABC):
    """One connection, made when first needed and again after a fault, behind the process's breaker for this server."""

    _repeats: ClassVar[bool] = False
    """Whether a connection that is lost in mid-batch is replaced, once for each request. Else the rest of the batch failed."""

    def __init__(self, where: str, timeouts: Timeouts, breaker: Breaker) -> None:
        """Args:
        where: names the store in the log; no credentials.
        timeouts: ``connect_ms`` bounds a connection with its handshake, ``stall_ms`` every silence.
        """
        self._where, self._breaker = where, breaker
        self._connect_s = timeouts.connect_ms / 1000
        self._stall_s = timeouts.stall_ms / 1000
        self._connection: Connection | None = None
        self._generation = 0
        self._moves = breaker.moves
        self.errors: Counter[str] = Counter()
        """See `Store`."""
        self._silent_s = 0.0
        """So long the server was waited for in vain since it last answered, in calls that ended by
        their deadline."""

    @abc.abstractmethod
    def _dial(self, deadline: float) -> Connection:
        """A connection that is ready for requests.

        Raises:
            OSError, ProtocolDoubt, Refused: there is none; nothing stays open.
        """

    lent: ClassVar[Loan | None] = None
    """See `Store`: what is not read when time is up is lost with its connection."""

    @property
    def generation(self) -> int:
        """Connections made so far."""
        return self._generation

    def close(self) -> None:
        """Drop the connection and everything read ahead from it."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _batch(
        self,
        count: int,
        request: Callable[[int], Sequence[Buffer]],
        reply: Callable[[Connection, int], Outcome],
        cost: Callable[[int], int],
        deadline: float,
        *,
        patient: bool = False,
    ) -> list[Outcome]:
        """One outcome per request, whatever happens; what is left after a fault shares one outcome.

        Args:
            request: what to send for a number.
            reply: reads exactly the reply to a number. May raise `Unreadable`.
            cost: bytes that a request and its reply keep in flight, about.
            patient: once connected, the server may be silent until the deadline.
        """
        if not count:  # no reply, so nothing is learnt about the server
            return []
        if time.monotonic() >= deadline:  # the caller was late, not the server
            return [Outcome.TIMEOUT] * count
        if (
            not self._breaker.allow()
        ):  # once for a batch: a probe may need a second connection, its first one being stale
            return [Outcome.FAILED] * count
        outcomes: list[Outcome] = []
        lost_at = -1
        try:
            while len(outcomes) < count:
                reused = self._connection is not None
                # The request at which a connection was lost is repeated alone: is it the request or the connection?
                until = len(outcomes) + 1 if lost_at == len(outcomes) else count
                try:
                    connection = self._connected(deadline)
                    connection.stall_s = math.inf if patient else self._stall_s
                    _exchange(connection, outcomes, until, request, reply, cost, deadline)
                except Unreadable:
                    self.close()
                    self._connected(deadline)  # a fault here: it was the server that went, not the value
                    outcomes.append(Outcome.CORRUPT)
                except (ConnectionError, ProtocolDoubt):
                    # An idle connection that the server closed, or a server that was started anew, says nothing about it now.
                    idle = reused and not outcomes
                    if self._connection is None or lost_at == len(outcomes) or not (idle or self._repeats):
                        raise
                    lost_at = len(outcomes)
                    self.close()
        except Late as late:
            self._late(late, answered=bool(outcomes))
            return outcomes + [Outcome.TIMEOUT] * (count - len(outcomes))
        except (OSError, ProtocolDoubt, Refused) as fault:
            # The kernel's own time-outs are a server's silence, too.
            rest = Outcome.STALLED if isinstance(fault, TimeoutError) else Outcome.FAILED
            self._fault(fault)
            return outcomes + [rest] * (count - len(outcomes))
        self._works()
        return outcomes

    def _late(self, late: Late, *, answered: bool) -> None:
        """The caller's time was up. Only ``stall_ms`` of silence, in this call or in several, are
        the server's fault: a small budget that a server which works could not keep would else have all
        others compute what it has."""
        self.close()  # replies that nobody waits for any more are on their way
        silent_s = late.silent_s if answered else self._silent_s + late.silent_s
        if silent_s >= self._stall_s:
            self._fault(late)
            return
        if answered:
            self._works()
        self._silent_s = silent_s

    def _works(self) -> None:
        self._silent_s = 0.0
        if self._breaker.succeeded():
            logger.warning("%s answers again", self._where)

    def _fault(self, fault: Exception) -> None:
        self.close()
        self._silent_s = 0.0
        if isinstance(fault, Refused) and fault.word:
            self.errors[event_of(fault.word)] += 1
        if self._breaker.failed():
            what = str(fault) or type(fault).__name__
            logger.warning("%s: %s; blocks are computed until it answers", self._where, what)

    def _connected(self, deadline: float) -> Connection:
        """The connection, made if there is none.

        Raises:
            Late: the deadline passed.
            OSError, ProtocolDoubt, Refused: see `_dial`. One that takes longer than a connection
                may take, but has time left, is `Stalled`.
        """
        if self._moves != self._breaker.moves:
            self.close()
        if self._connection is None:
            self._moves = self._breaker.moves
            by = min(deadline, time.monotonic() + self._connect_s)
            try:
                self._connection = self._dial(by)
            except Late:
                if by == deadline:
                    raise
                raise Stalled(self._connect_s) from None
            self._generation += 1
        return self._connection


def _exchange(
    connection: Connection,
    outcomes: list[Outcome],
    count: int,
    request: Callable[[int], Sequence[Buffer]],
    reply: Callable[[Connection, int], Outcome],
    cost: Callable[[int], int],
    deadline: float,
) -> None:
    """Send within the window, from the first request without an outcome on, and append the replies' outcomes in order, as far
    as it goes before a fault is raised."""
    sent, in_flight = len(outcomes), 0
    while len(outcomes) < count:
        parts: list[Buffer] = []
        while sent < count and (
            sent == len(outcomes) or (in_flight + cost(sent) <= WINDOW_BYTES and sent - len(outcomes) < WINDOW_REQUESTS)
        ):
            parts += request(sent)
            in_flight += cost(sent)
            sent += 1
        if parts:
            connection.send(parts, deadline)
        in_flight -= cost(len(outcomes))
        outcomes.append(reply(connection, len(outcomes)))
