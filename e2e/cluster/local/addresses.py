"""Whether the cluster's address ranges are free on this machine. Reads /proc; changes nothing; the
standard library alone.

A wider route of this machine (10.0.0.0/8 of a company's network) does not stand in the way: the
cluster's own routes are narrower and go before it. What lies inside the ranges does: it would be
cut off, or would cut the cluster off.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from e2e.cluster.local.layout import BRIDGE, NODE_IP, POD_CIDR, SERVICE_CIDR

RANGES = (IPv4Network(POD_CIDR), IPv4Network(SERVICE_CIDR))


@dataclass(frozen=True)
class Route:
    """A route of the kernel's main table; a gateway of 0.0.0.0 is none."""

    device: str
    network: IPv4Network
    gateway: IPv4Address


def overlaps() -> list[str]:
    """What of this machine's network lies in the cluster's ranges, as phrases; our own bridge does
    not count."""
    addresses = own_addresses(_text("/proc/net/fib_trie"))
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        addresses = [one for one in addresses if one != IPv4Address(NODE_IP)]
    routes = [route for route in own_routes(_text("/proc/net/route")) if route.device != BRIDGE]
    return conflicts(addresses, routes, name_servers(_text("/etc/resolv.conf")))


def conflicts(addresses: Sequence[IPv4Address], routes: Sequence[Route], servers: Sequence[IPv4Address]) -> list[str]:
    """Which of these are in the cluster's ranges."""
    found = [f"address {one}" for one in addresses if _inside(one)]
    for route in routes:
        if any(route.network.subnet_of(each) for each in RANGES):
            found.append(f"route {route.network} of {route.device}")
        elif _inside(route.gateway):
            found.append(f"gateway {route.gateway} of {route.device}")
    return found + [f"name server {one}" for one in servers if _inside(one)]


def _inside(address: IPv4Address) -> bool:
    return any(address in each for each in RANGES)


def own_addresses(trie: str) -> list[IPv4Address]:
    """This machine's addresses, from /proc/net/fib_trie, which lists each of them in two tables."""
    found = re.findall(r"\|-- ([\d.]+)\n(?:\s+/\d+ .*\n)*?\s+/32 host LOCAL", trie)
    return [IPv4Address(one) for one in dict.fromkeys(found)]


def own_routes(table: str) -> list[Route]:
    """The routes of /proc/net/route, whose numbers are in this machine's byte order."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return [
        Route(row[0], IPv4Network((_number(row[1]), _length(row[7]))), IPv4Address(_number(row[2]))) for row in rows
    ]


def _number(word: str) -> int:
    return socket.ntohl(int(word, 16))


def _length(mask: str) -> int:
    return int(mask, 16).bit_count()


def name_servers(resolv_conf: str) -> list[IPv4Address]:
    """The IPv4 name servers that this machine asks."""
    found = re.findall(r"^nameserver\s+(\d+\.\d+\.\d+\.\d+)\s*$", resolv_conf, re.MULTILINE)
    return [IPv4Address(one) for one in found]


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
