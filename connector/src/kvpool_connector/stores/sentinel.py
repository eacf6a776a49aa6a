"""Redis Sentinel: which server is the primary now. Asked at each connection, so that a fail-over is followed by reconnecting.

Source: "Guidelines for Redis clients with support for Redis Sentinel", https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kvpool_connector.config import Sentinel
from kvpool_connector.config.remote import Address
from kvpool_connector.stores.connection import Connection, Late, ProtocolDoubt
from kvpool_connector.stores.resp import call, log_in
from kvpool_connector.stores.stream import Refused

Open = Callable[[str, int, float], Connection]
"""Opens a connection to host and port by a deadline, and refuses a server that is no primary."""


class Sentinels:
    """Some sentinels of one group. Used by one thread."""

    def __init__(self, config: Sentinel, stall_s: float) -> None:
        """Args:
        stall_s: how long each of them may be silent.
        """
        self._config = config
        self._stall_s = stall_s
        self._endpoints = list(config.endpoints)

    def connect(self, open_primary: Open, deadline: float) -> Connection:
        """The first primary that a sentinel names and that agrees. Each sentinel gets an equal share of the time that is left,
        so that one which does not answer leaves some for the others; the one that was right is asked first the next time.

        Raises:
            Late: the deadline passed.
            TimeoutError: none of them answered, or no primary that they named.
            Refused: no sentinel led to a primary; the text says why of each.
        """
        reasons: list[str] = []
        silent = 0
        began = time.monotonic()
        for left, endpoint in zip(range(len(self._endpoints), 0, -1), tuple(self._endpoints), strict=True):
            now = time.monotonic()
            by = now + (deadline - now) / left
            try:
                host, port = self._ask(endpoint, by)
                connection = open_primary(host, port, by)
            except (OSError, ProtocolDoubt, Refused) as error:
                silent += isinstance(error, TimeoutError)
                reasons.append(f"{endpoint}: {error or type(error).__name__}")
            else:
                self._endpoints.remove(endpoint)
                self._endpoints.insert(0, endpoint)
                return connection
        if silent == len(reasons):
            if (now := time.monotonic()) >= deadline:
                raise Late(now - began)
            raise TimeoutError("no sentinel led to a primary in time: " + "; ".join(reasons))
        raise Refused("no sentinel led to a primary: " + "; ".join(reasons))

    def _ask(self, endpoint: Address, deadline: float) -> tuple[str, int]:
        """The primary's address as one sentinel tells it."""
        name = self._config.master_name
        connection = Connection(endpoint.host, endpoint.port, deadline, self._stall_s)
        try:
            log_in(connection, self._config, deadline)
            match call(connection, [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name.encode()], deadline):
                case [bytes(host), bytes(port)] if port.isdigit():
                    return host.decode(errors="replace"), int(port)
                case None:
                    raise Refused(
                        f"it knows no master {name!r}: set remote.sentinel.master_name to the name after "
                        "'sentinel monitor' in sentinel.conf"
                    )
                case answer:
                    raise ProtocolDoubt(f"unexpected address {str(answer)[:60]}")
        finally:
            connection.close()


def assert_primary(connection: Connection, deadline: float) -> None:
    """Ask the server itself: a sentinel may not know yet that it was demoted.

    Raises:
        Refused: it is not the primary, or may not be asked.
    """
    match call(connection, [b"ROLE"], deadline):
        case [b"master", *_]:
            return
        case [bytes(role), *_]:
            raise Refused(f"the named server is a {role.decode(errors='replace')}, not the primary yet")
        case answer:
            raise ProtocolDoubt(f"unexpected role {str(answer)[:60]}")
