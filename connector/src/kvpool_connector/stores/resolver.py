"""Addresses of a store's name, by a deadline. The C library's resolver has none of its own: a nameserver that does not answer
holds a caller up for five seconds a try.

Who waits for the resolver in vain goes on with the last addresses that it gave in this process; there are none before the first
answer. An answer that the name does not exist is an answer: an address that it had before may be somebody else's by now.
"""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

from kvpool_connector.stores.questions import Questions


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where to connect to, as :class:`socket.socket` and its ``connect`` want it."""

    family: int
    at: tuple[Any, ...]


class Resolver:
    """Asks for names. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._names: Questions[tuple[str, int], tuple[Address, ...]] = Questions(
            "resolver", lambda name: _asked_about(*name, 0), keeps=_asked_nobody
        )

    def addresses(self, host: str, port: int, deadline: float) -> tuple[Address, ...]:
        """Return the addresses of a host, at least one.

        Args:
            host: a name, or an address, which is not asked about.
            deadline: absolute ``time.monotonic()``.

        Raises:
            Unanswered: no answer of the resolver by the deadline, and none before.
            OSError: the resolver says that there is none, or cannot say.
        """
        try:
            return _asked_about(host, port, socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass  # a name
        except UnicodeError:  # from IDNA, for names such as "a..b"
            raise OSError(f"{host!r} is not a host name") from None
        return self._names.answer((host, port), deadline, f"no nameserver says in time what the address of {host!r} is")


def _asked_nobody(error: OSError) -> bool:
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN


def _asked_about(host: str, port: int, flags: int) -> tuple[Address, ...]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return tuple(Address(family, at) for family, _, _, _, at in found)


RESOLVER = Resolver()
"""The process's own: its connections to one store share what it knows."""
