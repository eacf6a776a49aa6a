"""Connections to addresses that the author of a pool chose, or that a store of theirs named: some are refused, and there are few
at a time."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from kvpool_operator.api.settings import Probes

_ANSWER_LIMIT = 4096
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AddressRefusedError(Exception):
    """A host leads to an address that the operator does not ask."""


class Dialer:
    """Opens connections. One event loop."""

    def __init__(self, probes: Probes, api_servers: Iterable[str]) -> None:
        """Args:
        api_servers: hosts of the API server.
        """
        self._probes = probes
        self._api_servers = tuple(api_servers) if probes.refuse_api_server else ()
        self._slots = asyncio.Semaphore(probes.at_a_time)
        # A nameserver may never answer, and its thread waits on after the deadline. Threads of the event loop's own would
        # then be missing where the webhook reads Pods.
        self._resolvers = ThreadPoolExecutor(probes.at_a_time, "resolver")

    @asynccontextmanager
    async def connection(self, host: str, port: int, deadline_s: float) -> AsyncIterator[Connection]:
        """Connect to a host, and close the connection at the end. The deadline holds for all that is done within, and
        begins when it is this connection's turn.

        The address that was checked is the one that is connected to: a name that is asked twice could lead
        to two addresses.

        Raises:
            AddressRefusedError: the host has an address that is refused.
            TimeoutError: the deadline passed.
            OSError: the name is not known, or nobody listens.
        """
        async with self._slots, asyncio.timeout(deadline_s):
            addresses = await self._addresses(host, port)
            refused = [address for address in addresses if await self._is_refused(address)]
            if refused:
                raise AddressRefusedError(host)
            reader, writer = await _first_of(addresses, port)
            try:
                yield reader, writer
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _addresses(self, host: str, port: int) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(self._resolvers, _addresses, host, port)

    async def _is_refused(self, address: str) -> bool:
        plain = _plain(address)
        if any(plain in network for network in self._probes.refused_networks if network.version == plain.version):
            return True
        for server in self._api_servers:
            with suppress(OSError):
                if plain in {_plain(known) for known in await self._addresses(server, 443)}:
                    return True
        return False


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
