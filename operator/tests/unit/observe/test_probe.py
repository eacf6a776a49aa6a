"""The probe against peers that misbehave: it ends in time, with words, and without an exception."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvpool_operator.api.settings import Probes
from kvpool_operator.observe.dial import Dialer
from kvpool_operator.observe.probe import Target, encode, probe, sentinel_primary
from kvpool_operator.status.observed import StoreProbe, StoreState
from testkit.patience import PATIENCE_S, promptly

from .api_server import no_hosts


def anywhere(deadline_s: float = PATIENCE_S) -> Dialer:
    """A dialer that refuses no address: peers listen on loopback."""
    probes = Probes.model_construct(refused_networks=(), refuse_api_server=False, deadline_seconds=deadline_s)
    return Dialer(probes, no_hosts)


@asynccontextmanager
async def peer(answer: bytes | None, *, close: bool = False) -> AsyncIterator[int]:
    """A server that answers every command with the same bytes, or never."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not close and await reader.read(4096):
                if answer is not None:
                    writer.write(answer)
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "close", "words"),
    [
        (None, False, "did not answer within 0.2 s"),
        (b"", True, "127.0.0.1"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "not like Redis or Valkey"),
        (b"x" * 100_000, False, "127.0.0.1"),
        (b"\xff\xfe\r\n", False, "not like Redis or Valkey"),
    ],
    ids=["silent", "closes", "a web server", "endless", "garbage"],
)
async def test_a_peer_that_is_no_store(answer: bytes | None, close: bool, words: str) -> None:
    async with peer(answer, close=close) as port:
        with promptly(2):
            found = await probe(anywhere(PATIENCE_S if answer or close else 0.2), Target("127.0.0.1", port))
    assert found.state is StoreState.UNREACHABLE
    assert words in found.detail


async def test_nobody_listens() -> None:
    found = await probe(anywhere(), Target("127.0.0.1", 9))
    assert found.state is StoreState.UNREACHABLE
    assert "Connect" in found.detail


@pytest.mark.parametrize("port", ["x", "", "0", "65536", "-1", "9" * 30, "\u0661"])
async def test_a_sentinel_that_names_no_port(port: str) -> None:
    """An answer, never an exception: the pool would be without a status for ever."""
    word = port.encode()
    async with peer(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(word), word)) as listens:
        found = await sentinel_primary(anywhere(), Target("127.0.0.1", listens), "mymaster")
    assert isinstance(found, StoreProbe)
    assert found.state is StoreState.UNREACHABLE


@pytest.mark.parametrize("port", [-1, 0, 65536, 99999])
async def test_a_port_that_is_none(port: int) -> None:
    """An older CRD let it in."""
    assert (await probe(anywhere(), Target("127.0.0.1", port))).state is StoreState.UNREACHABLE


async def test_a_store_that_answers() -> None:
    async with peer(b"+PONG\r\n") as port:
        assert (await probe(anywhere(), Target("127.0.0.1", port))).state is StoreState.AVAILABLE


def test_words_cannot_smuggle_commands() -> None:
    assert encode("AUTH", "a\r\nFLUSHALL\r\n") == b"*2\r\n$4\r\nAUTH\r\n$13\r\na\r\nFLUSHALL\r\n\r\n"


def test_a_target_does_not_show_its_password() -> None:
    assert "canary" not in repr(Target("h", 1, password="canary"))


@pytest.mark.parametrize(
    "answer",
    [
        b"-ERR unknown command 'AUTH', with args beginning with: 'canary'\r\n",
        b"-WRONGPASS canary\r\n",
        b"-canary\r\n",
        b"canary of a web server\r\n",
        b"*2\r\n$6\r\ncanary\r\n$6\r\ncanary\r\n",
        b"*2\r\n$canary\r\n",
    ],
)
async def test_nothing_that_a_peer_says_is_repeated(answer: bytes) -> None:
    """Neither the password nor what a server says that is none of the pool's."""
    async with peer(answer) as port:
        target = Target("127.0.0.1", port, password="canary")
        for login in (target, dataclasses.replace(target, password=None)):
            found = await probe(anywhere(), login)
            assert found.state in (StoreState.AUTH_FAILED, StoreState.UNREACHABLE)
            assert "canary" not in found.detail
            named = await sentinel_primary(anywhere(), login, "mymaster")
            assert isinstance(named, StoreProbe)
            assert "canary" not in named.detail
    assert "canary" not in found.detail
