"""Connections to addresses that the author of a pool chose, or that a store of theirs named: some are refused, and there are few
at a time."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from kvpool_operator.api.settings import Probes

_ANSWER_LIMIT = 4096
_RESOLVERS = 32
"""Threads for names, for each connection that may be opened at once. A nameserver that does not answer keeps a
thread for up to a minute (five domains of Kubernetes' search list, two tries of 5 s each), and
connections of two seconds follow each other. With fewer threads the names of one pool would keep those
of others from being looked up, whose stores would be called unreachable."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AddressRefusedError(Exception):
    """A host leads to an address that the operator does not ask."""


class Dialer:
    """Opens connections. One event loop."""

    def __init__(self, probes: Probes, api_servers: Callable[[], Awaitable[Iterable[str]]]) -> None:
        """Args:
        api_servers: returns the names and addresses of API servers; it is asked for each connection.
        """
        self._probes = probes
        self.deadline_s = probes.deadline_seconds
        """For one server."""
        self._api_servers = api_servers
        self._slots = asyncio.Semaphore(probes.at_a_time)
        # A nameserver may never answer, and its thread waits on after the deadline. Threads of the event loop's own would
        # then be missing where the webhook reads Pods.
        self._resolvers = ThreadPoolExecutor(_RESOLVERS * probes.at_a_time, "resolver")

    @asynccontextmanager
    async def connection(self, host: str, port: int, deadline_s: float) -> AsyncIterator[Connection]:
        """Connect to a host, and close the connection at the end. The deadline holds for all that is done within, and
        begins when it is this connection's turn.

        The address that was checked is the one that is connected to: a name that is asked twice could lead
        to two addresses.

        Raises:
            AddressRefusedError: the host has an address that is refused.
            ApiError: nobody told the addresses of API servers, so none can be refused.
            TimeoutError: the deadline passed.
            OSError: the name is not known, or nobody listens.
        """
        # This wait is for the API server, so it is none of the deadline of a store.
        api_servers = await self._api_servers() if self._probes.refuse_api_server else ()
        async with self._slots, asyncio.timeout(deadline_s):
            addresses = await self._addresses(host, port)
            known = await self._resolved(api_servers)
            if any(self._is_refused(_plain(address), known) for address in addresses):
                raise AddressRefusedError(host)
            reader, writer = await _first_of(addresses, port)
            try:
                yield reader, writer
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def refuses(self, address: str) -> bool:
        """Return whether an address is one that the operator does not ask.

        Raises:
            ApiError: nobody told the addresses of API servers.
            TimeoutError: nameservers did not tell those of their names in time.
        """
        api_servers = await self._api_servers() if self._probes.refuse_api_server else ()
        async with self._slots, asyncio.timeout(self.deadline_s):
            return self._is_refused(_plain(address), await self._resolved(api_servers))

    async def _addresses(self, host: str, port: int) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(self._resolvers, _addresses, host, port)

    async def _resolved(self, hosts: Iterable[str]) -> set[Address]:
        """Return the addresses of hosts. A name that nameservers do not know has none."""
        found: set[Address] = set()
        for host in hosts:
            with suppress(OSError):
                found.update(_plain(address) for address in await self._addresses(host, 443))
        return found

    def _is_refused(self, address: Address, api_servers: set[Address]) -> bool:
        networks = self._probes.refused_networks
        return address in api_servers or any(
            address in network for network in networks if network.version == address.version
        )


def _addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a host, in the order in which they are to be tried. This may take as long as a nameserver likes."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def _first_of(addresses: Iterable[str], port: int) -> Connection:
    """Return a connection to the first of the addresses at which somebody listens."""
    failure: OSError = OSError("it has no address")
    for address in addresses:
        try:
            return await asyncio.open_connection(address, port, limit=_ANSWER_LIMIT)
        except OSError as error:
            failure = error
    raise failure


def _plain(address: str) -> Address:
    """Return an address without its zone, and an IPv4 address in the place of one that IPv6 only wraps."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found
