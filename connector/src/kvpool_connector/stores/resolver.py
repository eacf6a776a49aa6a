"""Addresses of a store's name, by a deadline. The C library's resolver has none of its own: a nameserver that does not answer
holds a caller up for five seconds a try.

The resolver runs on a thread, one for each name at a time, whoever asks. Who waits for it in vain goes on with the last
addresses that it gave in this process; there are none before the first answer. An answer that the name does not exist is an
answer: an address that it had before may be somebody else's by now.
"""

from __future__ import annotations

import dataclasses
import functools
import socket
import threading
import time
from typing import Any

from kvpool_connector import threads
from kvpool_connector.log import get_logger

logger = get_logger(__name__)

_TELL_EVERY_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where to connect to, as :class:`socket.socket` and its ``connect`` want it."""

    family: int
    at: tuple[Any, ...]


class Unresolved(TimeoutError):
    """No answer of the resolver by the deadline, and none before."""


class _Question:
    """A call of the resolver."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.addresses: tuple[Address, ...] = ()
        self.error: OSError | None = None


class Resolver:
    """Asks for names. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._asked: dict[tuple[str, int], _Question] = {}
        self._last: dict[tuple[str, int], tuple[Address, ...]] = {}
        self._tell_at = 0.0

    def addresses(self, host: str, port: int, deadline: float) -> tuple[Address, ...]:
        """Return the addresses of a host, at least one.

        Args:
            host: a name, or an address, which is not asked about.
            deadline: absolute ``time.monotonic()``.

        Raises:
            Unresolved: see there.
            OSError: the resolver says that there is none, or cannot say.
        """
        try:
            return _asked_about(host, port, socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass  # a name
        except UnicodeError:  # from IDNA, for names such as "a..b"
            raise OSError(f"{host!r} is not a host name") from None
        question, last = self._question(host, port)
        left_s = deadline - time.monotonic()
        # Where there is something to go on with, half of the time is for that.
        if not question.answered.wait(max(left_s / 2 if last else left_s, 0)):
            if not last:
                raise Unresolved(f"no nameserver said in time what the address of {host!r} is")
            self._tell(host)
            return last
        if question.error is not None:
            asked_nobody = isinstance(question.error, socket.gaierror) and question.error.errno == socket.EAI_AGAIN
            if not (last and asked_nobody):
                raise question.error
            return last
        return question.addresses

    def _tell(self, host: str) -> None:
        with self._lock:
            now = time.monotonic()
            tells = now >= self._tell_at
            if tells:
                self._tell_at = now + _TELL_EVERY_S
        if tells:
            logger.warning("no nameserver says in time what the address of %r is; its last one is used", host)

    def _question(self, host: str, port: int) -> tuple[_Question, tuple[Address, ...]]:
        """Return the question that is open about this name, or a new one, and the last answer, empty before the first."""
        with self._lock:
            question = self._asked.get((host, port))
            if question is None:
                question = self._asked[host, port] = _Question()
                threads.start("resolver", functools.partial(self._ask, question, host, port))
            return question, self._last.get((host, port), ())

    def _ask(self, question: _Question, host: str, port: int) -> None:
        """Run on the thread."""
        try:
            question.addresses = _asked_about(host, port, 0)
        except OSError as error:
            question.error = error
        except Exception as error:
            question.error = OSError(f"{host!r} cannot be resolved: {error}")
        with self._lock:
            del self._asked[host, port]
            if question.addresses:
                self._last[host, port] = question.addresses
        question.answered.set()


def _asked_about(host: str, port: int, flags: int) -> tuple[Address, ...]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return tuple(Address(family, at) for family, _, _, _, at in found)


RESOLVER = Resolver()
"""The process's own: its connections to one store share what it knows."""
