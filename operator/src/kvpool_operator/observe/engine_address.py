"""Where the engine in a Pod answers, as far as the Pod tells. Pure functions of the Pod."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from kvpool_operator.status.observed import EngineAddress

_VLLM_PORT = 8000
_PROBES = ("readinessProbe", "startupProbe", "livenessProbe")


def address_of(pod: Mapping[str, Any], container: Mapping[str, Any]) -> EngineAddress | None:
    """Return where a container that runs serves HTTP; None where the Pod has no address or it serves
    TLS.

    A port that a probe asks comes first, then the first one that the container names, then vLLM's
    default.
    """
    status = pod.get("status", {})
    runs = {one["name"]: one.get("containerID", "") for one in status.get("containerStatuses", ())}
    run = str(runs.get(container["name"], ""))
    try:
        host = str(ipaddress.ip_address(status.get("podIP", "")))
    except ValueError:
        return None
    for asked in _asked(container):
        if asked.get("scheme") == "HTTPS":
            return None
        port = _number(asked.get("port"), container)
        if port is not None:
            return EngineAddress(host, port, run)
    declared = (one.get("containerPort") for one in container.get("ports", ()))
    return EngineAddress(host, next(declared, _VLLM_PORT) or _VLLM_PORT, run)


def _asked(container: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for probe in _PROBES:
        asked = (container.get(probe) or {}).get("httpGet")
        if asked:
            yield asked


def _number(port: object, container: Mapping[str, Any]) -> int | None:
    """Return a probe's port as a number; it may be the name of one of the container's ports."""
    if isinstance(port, int):
        return port
    named = (one for one in container.get("ports", ()) if one.get("name") == port)
    return next((one.get("containerPort") for one in named), None)
