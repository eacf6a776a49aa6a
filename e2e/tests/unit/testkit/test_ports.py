"""Ports for tests' servers: free, and of none that the kernel hands out."""

from __future__ import annotations

import socket

import pytest

from testkit import ports


def test_a_port_is_below_those_of_connections_and_can_be_bound() -> None:
    for _ in range(100):
        port = ports.free_port()
        assert ports.FIRST <= port < max(ports.FIRST + ports.LEAST, ports.ephemeral_begin())
        socket.create_server(("127.0.0.1", port)).close()


def test_a_range_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only port of a range is found while it is free, and missed once it is not."""
    port = ports.free_port()
    monkeypatch.setattr(ports, "FIRST", port)
    monkeypatch.setattr(ports, "LEAST", 1)
    monkeypatch.setattr(ports, "ephemeral_begin", lambda: port)
    assert ports.free_port() == port
    taken = socket.create_server(("127.0.0.1", port))
    with taken, pytest.raises(RuntimeError, match="no free port"):
        ports.free_port()
