"""Whether an external Redis or Valkey answers and lets us in, and which primary a sentinel names: one connection, and one
deadline for all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from kvpool_operator.observe.dial import AddressRefusedError, Dialer
from kvpool_operator.status.observed import StoreProbe, StoreState

_MOST_TEXT = 4096
Answer = TypeVar("Answer")
_KNOWN_ERRORS = {
    "NOAUTH": "it asks for a password",
    "WRONGPASS": "the user or the password is wrong",
    "NOPERM": "the user lacks the rights",
    "DENIED": "it is in protected mode and serves its own host alone",
    "LOADING": "it is loading its data",
    "MASTERDOWN": "it is a replica without its primary",
    "MISCONF": "it cannot write its snapshot",
    "CLUSTERDOWN": "its cluster is down",
    "ERR": "it answered with an error",
}
"""What a server's error means, by its first word. Nothing else of an answer is repeated: whoever may
make a pool chooses the address, and would read in the pool's status what any server in the cluster
says to the operator."""


def encode(*words: str) -> bytes:
    """One command in the protocol's array form: words may hold any byte, and none is interpreted."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


@dataclass(frozen=True, repr=False)
class Target:
    """What to probe. No ``repr``: it holds a password."""

    host: str
    port: int
    database: int = 0
    username: str = ""
    password: str | None = None
    called: str = ""
    """What the status calls it; empty: by its address. For an address that a server named and nobody else."""

    def __repr__(self) -> str:
        return f"Target({self.where})"

    @property
    def where(self) -> str:
        return self.called or f"{self.host}:{self.port}"


async def probe(dial: Dialer, target: Target) -> StoreProbe:
    """Try it once. Never raises for what a store or a network can do, and never repeats a password in what it says."""
    return await within(dial, target, lambda reader, writer: _converse(target, reader, writer))


async def probe_anonymously(dial: Dialer, target: Target) -> StoreProbe:
    """Try it once without a password. A server that asks for one answers, which is all that is seen of it."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> StoreProbe:
        answer = await _ask(reader, writer, "PING")
        if answer.startswith("-NOAUTH"):
            return StoreProbe(StoreState.AVAILABLE, f"{target.where} answers, and asks for a password")
        return _pong(target, answer) or StoreProbe(StoreState.AVAILABLE, f"{target.where} answers")

    return await within(dial, target, talk)


async def sentinel_primary(dial: Dialer, target: Target, master_name: str) -> tuple[str, int] | StoreProbe:
    """The primary's address as a sentinel names it; or why it names none."""
    return await within(dial, target, lambda reader, writer: _ask_sentinel(target, master_name, reader, writer))


async def within(
    dial: Dialer,
    target: Target,
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Answer]],
) -> Answer | StoreProbe:
    """One connection, one deadline for all that is said over it. What a network or a server can do is an answer, never raised."""
    try:
        async with dial.connection(target.host, target.port, dial.deadline_s) as (reader, writer):
            return await talk(reader, writer)
    except AddressRefusedError:
        return StoreProbe(
            StoreState.ADDRESS_REFUSED, f"the operator does not ask the address that {target.where} leads to"
        )
    except TimeoutError:
        return StoreProbe(StoreState.UNREACHABLE, f"{target.where} did not answer within {dial.deadline_s:g} s")
    except (OSError, OverflowError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        return StoreProbe(StoreState.UNREACHABLE, f"{target.where}: {_words(error)}")


async def _log_in(target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> StoreProbe | None:
    """AUTH, where there is a password; why it was refused."""
    if target.password is None:
        return None
    credentials = (target.username, target.password) if target.username else (target.password,)
    answer = await _ask(reader, writer, "AUTH", *credentials)
    # A server without any password refuses AUTH with another error; then it is the Secret that is too much.
    if not answer.startswith("-"):
        return None
    return StoreProbe(StoreState.AUTH_FAILED, f"{target.where} refused the user and password{_said(answer)}")


async def _ask_sentinel(
    target: Target, master_name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, int] | StoreProbe:
    if (refused := await _log_in(target, reader, writer)) is not None:
        return refused
    answer = await _ask(reader, writer, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", master_name)
    if answer.startswith(("-NOAUTH", "-NOPERM", "-DENIED")):
        return StoreProbe(StoreState.AUTH_FAILED, f"the sentinel {target.where} lets nobody in{_said(answer)}")
    if answer in ("*-1", "$-1", "_"):
        return StoreProbe(StoreState.UNKNOWN_MASTER, f"the sentinel {target.where} knows no master {master_name!r}")
    if answer != "*2":
        return StoreProbe(StoreState.UNREACHABLE, f"{target.where} answers, but not like a sentinel{_said(answer)}")
    host, port = [await _bulk(reader) for _ in range(2)]
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        return StoreProbe(StoreState.UNREACHABLE, f"the sentinel {target.where} names an address without a port")
    return host, int(port)


async def _bulk(reader: asyncio.StreamReader) -> str:
    size = (await reader.readuntil(b"\r\n")).decode(errors="replace").strip()
    if not size[1:].isdecimal() or int(size[1:]) > _MOST_TEXT:
        raise UnicodeError("an answer without a length")
    return (await reader.readexactly(int(size[1:]) + 2))[:-2].decode()


async def _converse(target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> StoreProbe:
    where = target.where
    if (refused := await _log_in(target, reader, writer)) is not None:
        return refused
    if (fault := _pong(target, await _ask(reader, writer, "PING"))) is not None:
        return fault
    if target.database and (answer := await _ask(reader, writer, "SELECT", str(target.database))) != "+OK":
        return StoreProbe(StoreState.NO_DATABASE, f"{where} has no database {target.database}{_said(answer)}")
    return StoreProbe(StoreState.AVAILABLE, f"{where} answers")


def _pong(target: Target, answer: str) -> StoreProbe | None:
    """Return what is wrong with the answer to PING; None if it is right."""
    if answer.startswith(("-NOAUTH", "-WRONGPASS", "-NOPERM", "-DENIED")):
        return StoreProbe(StoreState.AUTH_FAILED, f"{target.where} lets nobody in without a password{_said(answer)}")
    if answer != "+PONG":
        return StoreProbe(
            StoreState.UNREACHABLE, f"{target.where} answers, but not like Redis or Valkey{_said(answer)}"
        )
    return None


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *words: str) -> str:
    writer.write(encode(*words))
    await writer.drain()
    return (await reader.readuntil(b"\r\n")).decode(errors="replace").rstrip("\r\n")


def _said(answer: str) -> str:
    """Return what a server's error means, as the end of a sentence; nothing for any other answer."""
    meaning = _KNOWN_ERRORS.get(answer[1:].partition(" ")[0]) if answer.startswith("-") else None
    return f": {meaning}" if meaning else ""


def _words(error: Exception) -> str:
    if isinstance(error, asyncio.IncompleteReadError):
        return "the connection was closed in mid-answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
