"""Whether an external store or etcd answers, kind by kind. One deadline for each probe; nothing is raised for what a server can
do, and no password is repeated."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, replace

from kvpool_operator.api import KVCachePoolSpec, StoreType
from kvpool_operator.api.external import External, ExternalSentinel
from kvpool_operator.desired.stores import DEFAULT_PORTS
from kvpool_operator.kube import ApiError
from kvpool_operator.observe.dial import Dialer
from kvpool_operator.observe.probe import Target, probe, probe_anonymously, sentinel_primary, within
from kvpool_operator.status.observed import StoreProbe, StoreState

TOTAL_S = 30.0
"""Seconds for all probes of a pool together."""
_LM_HEALTH = struct.pack("<9i150s", 5, 0, 4, 6, 0, 0, 0, 0, 0, b"ready@1@0@0@uint8".ljust(150))
"""LMCache's request HEALTH, and 36 bytes of answer. Source: lmcache 0.5.6, lmcache/v1/protocol.py."""
_LM_ANSWER = 36


@dataclass(frozen=True, repr=False)
class Login:
    """Of an external server. No ``repr``: it holds a password."""

    username: str = ""
    password: str | None = None


def has_external(spec: KVCachePoolSpec) -> bool:
    """Whether something has to be probed that no watch tells of."""
    backend = spec.backend
    if backend is None or not spec.has_store:
        return False
    return backend.external is not None or bool(backend.etcd and backend.etcd.external)


async def probe_external(
    dial: Dialer, spec: KVCachePoolSpec, store: Login, sentinels: Login, *, deadline_s: float = TOTAL_S
) -> StoreProbe:
    """Try it once.

    Args:
        deadline_s: for all of it, the wait for other pools' probes included: a pool with many addresses
            that are silent keeps a worker no longer.
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await _probe(dial, spec, store, sentinels)
    except ApiError as error:
        detail = f"the store was not asked, since API servers' addresses are unknown: {error.message}"
        return StoreProbe(StoreState.NOT_LOOKED_AT, detail)
    except TimeoutError:
        return StoreProbe(StoreState.UNREACHABLE, f"what the pool names did not all answer within {deadline_s:g} s")


async def _probe(dial: Dialer, spec: KVCachePoolSpec, store: Login, sentinels: Login) -> StoreProbe:
    backend = spec.backend
    assert backend is not None  # noqa: S101  (has_external looked)
    if backend.etcd is not None and backend.etcd.external is not None:
        return await probe_etcd(dial, backend.etcd.external.endpoints)
    external = backend.external
    assert external is not None  # noqa: S101
    if external.sentinel is not None:
        return await _probe_group(dial, external, external.sentinel, store, sentinels)
    if external.master is not None:
        return await _probe_master(dial, external.master)
    host, port = external.host or "", external.port or DEFAULT_PORTS[backend.type]
    if not backend.is_redis:
        return await (probe_lmcache if backend.type is StoreType.LMCACHE_SERVER else probe_port)(dial, host, port)
    return await probe(dial, Target(host, port, external.database or 0, store.username, store.password))


async def _probe_group(
    dial: Dialer, external: External, group: ExternalSentinel, store: Login, sentinels: Login
) -> StoreProbe:
    """Ask the sentinels one after the other, then the primary that one of them names.

    A sentinel may name any host. The store's password is sent there only if the pool names that host, too.
    """
    last = StoreProbe(StoreState.UNREACHABLE, "no sentinel was asked")
    for endpoint in group.endpoints:
        target = Target(endpoint.host, endpoint.port, 0, sentinels.username, sentinels.password)
        found = await sentinel_primary(dial, target, group.master_name)
        if isinstance(found, StoreProbe):
            last = found if last.state is not StoreState.UNKNOWN_MASTER else last
            continue
        host, port = found
        if group.trusts(host):
            answer = await probe(dial, Target(host, port, external.database or 0, store.username, store.password))
        else:
            # Whoever made the pool may have chosen the sentinel: what it says is not repeated.
            answer = await probe_anonymously(dial, Target(host, port, called=f"the server that {target.where} names"))
        return replace(answer, detail=f"the primary of {group.master_name}: {answer.detail}")
    return last


async def _probe_master(dial: Dialer, master: str) -> StoreProbe:
    """Several masters are found through their etcd; whether one of them serves is then the engines' to see."""
    if master.startswith("etcd://"):
        return await probe_etcd(dial, tuple(master.removeprefix("etcd://").split(";")))
    return await probe_port(dial, *_split(master))


async def probe_port(dial: Dialer, host: str, port: int) -> StoreProbe:
    """Whether somebody listens: these servers have no question that costs nothing and needs no client of theirs."""

    async def nothing(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> StoreProbe:
        return StoreProbe(StoreState.AVAILABLE, f"{host}:{port} listens")

    return await within(dial, Target(host, port), nothing)


async def probe_lmcache(dial: Dialer, host: str, port: int) -> StoreProbe:
    """LMCache's own HEALTH."""

    async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> StoreProbe:
        writer.write(_LM_HEALTH)
        await writer.drain()
        await reader.readexactly(_LM_ANSWER)
        return StoreProbe(StoreState.AVAILABLE, f"{host}:{port} answers")

    return await within(dial, Target(host, port), health)


async def probe_etcd(dial: Dialer, endpoints: tuple[str, ...]) -> StoreProbe:
    """/health of all members: a member is healthy only if it sees a leader."""
    found = await asyncio.gather(*(_etcd_member(dial, endpoint) for endpoint in endpoints))
    needed = len(endpoints) // 2 + 1
    healthy = sum(probe.state is StoreState.AVAILABLE for probe in found)
    faults = "; ".join(probe.detail for probe in found if probe.state is not StoreState.AVAILABLE)
    said = f"{healthy} of {len(endpoints)} members of etcd are healthy, {needed} are needed"
    if healthy >= needed:
        return StoreProbe(StoreState.AVAILABLE, said)
    return StoreProbe(StoreState.NO_QUORUM, f"{said}: {faults}")


async def _etcd_member(dial: Dialer, endpoint: str) -> StoreProbe:
    host, port = _split(endpoint)

    async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> StoreProbe:
        writer.write(f"GET /health HTTP/1.0\r\nHost: {endpoint}\r\n\r\n".encode())
        await writer.drain()
        status = (await reader.readuntil(b"\r\n")).split()
        if len(status) > 1 and status[1] == b"200":
            return StoreProbe(StoreState.AVAILABLE, f"{endpoint} is healthy")
        return StoreProbe(StoreState.NO_QUORUM, f"{endpoint} sees no leader")

    return await within(dial, Target(host, port), health)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
