"""Whether an external Redis or Valkey answers and lets us in: one connection, AUTH and PING, one deadline for all of it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from kvpool_operator.status.observed import StoreProbe, StoreState

_ANSWER_LIMIT = 4096


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

    def __repr__(self) -> str:
        return f"Target({self.where})"

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}"


async def probe(target: Target, *, deadline: float = 2.0) -> StoreProbe:
    """Try it once. Never raises for what a store or a network can do, and never repeats a password in what it says."""
    try:
        async with asyncio.timeout(deadline):
            return await _talk(target)
    except TimeoutError:
        return StoreProbe(StoreState.UNREACHABLE, f"{target.where} did not answer within {deadline:g} s")
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, UnicodeError) as error:
        return StoreProbe(StoreState.UNREACHABLE, f"{target.where}: {_words(error)}")


async def _talk(target: Target) -> StoreProbe:
    reader, writer = await asyncio.open_connection(target.host, target.port, limit=_ANSWER_LIMIT)
    try:
        return await _converse(target, reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _converse(target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> StoreProbe:
    where = target.where
    if target.password is not None:
        credentials = (target.username, target.password) if target.username else (target.password,)
        answer = await _ask(reader, writer, "AUTH", *credentials)
        # A server without any password refuses AUTH with another error; then it is the Secret that is too much.
        if answer.startswith("-"):
            # Some servers repeat what they did not understand, and this goes into a status.
            words = answer.replace(target.password, "...") if target.password else answer
            return StoreProbe(StoreState.AUTH_FAILED, f"{where} refused the user and password: {words[1:200]}")
    answer = await _ask(reader, writer, "PING")
    if answer.startswith(("-NOAUTH", "-WRONGPASS", "-NOPERM", "-DENIED")):
        return StoreProbe(StoreState.AUTH_FAILED, f"{where} lets nobody in without a password: {answer[1:200]}")
    if answer != "+PONG":
        return StoreProbe(StoreState.UNREACHABLE, f"{where} answers, but not like Redis or Valkey: {answer[:80]!r}")
    if target.database and (answer := await _ask(reader, writer, "SELECT", str(target.database))) != "+OK":
        return StoreProbe(StoreState.NO_DATABASE, f"{where} has no database {target.database}: {answer[1:200]}")
    return StoreProbe(StoreState.AVAILABLE, f"{where} answers")


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *words: str) -> str:
    writer.write(encode(*words))
    await writer.drain()
    return (await reader.readuntil(b"\r\n")).decode(errors="replace").rstrip("\r\n")


def _words(error: Exception) -> str:
    if isinstance(error, asyncio.IncompleteReadError):
        return "the connection was closed in mid-answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
