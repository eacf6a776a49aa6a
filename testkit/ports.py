"""Ports of loopback for servers that tests start.

A server that is told its port later, or comes back on the port it had, needs one that nothing takes
meanwhile. The kernel gives ports of one range to all connections that leave this machine, and to
whoever binds port 0, so a free port of that range may be taken a moment later by anybody's
connection. These ports lie below it, and below the range of Kubernetes' node ports.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

FIRST = 15000
BEHIND_LAST = 30000
LEAST = 1000
"""So many ports are drawn from, also where the kernel hands out ports from below `FIRST` on."""
MOST_TRIES = 200


def free_port() -> int:
    """Return a TCP port of loopback that nobody uses now.

    It is drawn at random, whatever the seed of a test is, so that sessions beside each other seldom
    draw the same one.

    Raises:
        RuntimeError: all ports that were tried are in use.
    """
    draw = random.SystemRandom()
    end = max(FIRST + LEAST, min(BEHIND_LAST, ephemeral_begin()))
    for _ in range(MOST_TRIES):
        port = draw.randrange(FIRST, end)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {FIRST} to {end - 1} after {MOST_TRIES} tries")


def ephemeral_begin() -> int:
    """Return the first of the ports that the kernel hands out."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
