"""Where a Pod's engine answers."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.observe.engine_address import address_of
from kvpool_operator.status.observed import EngineAddress

PROBE = {"httpGet": {"path": "/health", "port": 8080}}
PORTS = [{"name": "grpc", "containerPort": 9000}, {"name": "http", "containerPort": 9001}]


def asked(port: int | str, **further: str) -> dict[str, Any]:
    return {"httpGet": {"path": "/health", "port": port, **further}}


@pytest.mark.parametrize(
    ("container", "port"),
    [
        ({}, 8000),
        ({"ports": PORTS}, 9000),
        ({"readinessProbe": PROBE, "ports": PORTS}, 8080),
        ({"startupProbe": asked("http"), "ports": PORTS}, 9001),
        ({"readinessProbe": {"exec": {}}, "livenessProbe": asked(7)}, 7),
        ({"readinessProbe": asked("no such"), "ports": PORTS}, 9000),
        ({"readinessProbe": asked(8000, scheme="HTTPS"), "ports": PORTS}, None),
    ],
)
def test_the_port(container: dict[str, Any], port: int | None) -> None:
    run = {"name": "main", "containerID": "containerd://1"}
    pod = {"status": {"podIP": "10.0.0.7", "containerStatuses": [{"name": "other"}, run]}}
    found = address_of(pod, {"name": "main", **container})
    assert found == (None if port is None else EngineAddress("10.0.0.7", port, "containerd://1"))


@pytest.mark.parametrize("host", ["", "not an address", "10.0.0.7/metrics"])
def test_a_pod_without_an_address(host: str) -> None:
    assert address_of({"status": {"podIP": host}}, {"name": "main"}) is None
    assert address_of({}, {"name": "main"}) is None
