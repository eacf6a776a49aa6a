"""The addresses of the cluster's API servers, which probes do not ask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kvpool_operator.kube import ENDPOINT_SLICE, ApiError, Client, NotFound, Refused

_log = logging.getLogger(__name__)

NAMESPACE = "default"
NAME = "kubernetes"
"""API servers write their addresses into the EndpointSlice of this name, and the Service before them
has the same name."""
_FRESH_SECONDS = 60.0
"""A control plane that gets another node is seen after this time."""
_UNKNOWN = "probes refuse the API server's Service alone, and not the nodes behind it: %s"


class ApiServers:
    """Tells the hosts of API servers. One event loop."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._endpoints: tuple[str, ...] | None = None
        self._since = 0.0

    async def hosts(self) -> tuple[str, ...]:
        """Return the names and addresses by which the API server is reached, and the addresses of the
        nodes behind these.

        An operator that may not read the EndpointSlice knows only the former, and says so once.

        Raises:
            ApiError: the API server did not answer, and never did before.
        """
        if self._endpoints is None or self._clock() - self._since >= _FRESH_SECONDS:
            self._endpoints = await self._read()
            self._since = self._clock()
        return (*self._client.hosts, *self._endpoints)

    async def _read(self) -> tuple[str, ...]:
        try:
            return tuple(_addresses(await self._client.get(ENDPOINT_SLICE, NAMESPACE, NAME)))
        except ApiError as error:
            if self._endpoints is not None:
                return self._endpoints
            if not isinstance(error, NotFound | Refused):
                raise
            _log.warning(_UNKNOWN, error.message)
            return ()


def _addresses(body: Mapping[str, Any]) -> Iterable[str]:
    for endpoint in body.get("endpoints") or ():
        yield from endpoint.get("addresses") or ()
