"""Redis and Valkey: the data path, in the RESP2 protocol.

Why not redis-py: measured on one core it needs three times the CPU for 1 MiB values, and its time-outs multiply by its
retries, so that a stopped server holds a call for 25 s (docs/adr/0003-own-resp-client.md). This client keeps at most about
2 MiB requested and unread: a server that must build all replies of a long pipeline at once halves its own speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvpool_connector.config import RedisRemote
from kvpool_connector.log import get_logger
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.connection import Buffer, Connection, ProtocolDoubt

logger = get_logger(__name__)

WINDOW_BYTES = 2 << 20
"""Asked for (or sent) but not yet answered; at least one key is always in flight."""
WINDOW_KEYS = 256
"""Commands in flight; also keeps one sendmsg below the operating system's limit on its number of buffers."""


class Refused(Exception):
    """The server refused the handshake; the text is the server's and holds no secret."""


class RedisStore:
    """One connection, made when first needed and again after a fault, behind the process's breaker for this server."""

    def __init__(self, config: RedisRemote, breaker: Breaker) -> None:
        self._config = config
        self._breaker = breaker
        self._connection: Connection | None = None
        self._generation = 0
        self._expiry = b"" if config.ttl_s is None else b"$2\r\nEX\r\n" + _bulk(b"%d" % config.ttl_s)
        self._set = b"*%d\r\n$3\r\nSET\r\n" % (3 if config.ttl_s is None else 5)

    @property
    def generation(self) -> int:
        """Connections made so far."""
        return self._generation

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Ask for presence, one verdict per key."""
        return self._batch(
            len(keys), lambda i: [_command(b"EXISTS", keys[i])], _flag(deadline), lambda i: 128, deadline
        )

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Read each value straight into its buffer."""
        return self._batch(
            len(keys),
            lambda i: [_command(b"GET", keys[i])],
            lambda connection, i: _bulk_into(connection, buffers[i], deadline),
            lambda i: len(buffers[i]),
            deadline,
        )

    def put_from(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Send each buffer from where it lies."""

        def request(i: int) -> list[Buffer]:
            head = self._set + _bulk(keys[i]) + b"$%d\r\n" % len(buffers[i])
            return [head, buffers[i], b"\r\n" + self._expiry]

        def reply(connection: Connection, _: int) -> Outcome:
            return _status(connection, b"OK", deadline)

        return self._batch(len(keys), request, reply, lambda i: len(buffers[i]), deadline)

    def delete(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Remove without blocking the server (UNLINK)."""
        return self._batch(
            len(keys), lambda i: [_command(b"UNLINK", keys[i])], _flag(deadline), lambda i: 128, deadline
        )

    def ping(self, deadline: float) -> Outcome:
        """One round trip."""

        def reply(connection: Connection, _: int) -> Outcome:
            return _status(connection, b"PONG", deadline)

        return self._batch(1, lambda i: [_command(b"PING")], reply, lambda i: 0, deadline)[0]

    def close(self) -> None:
        """Drop the connection and everything read ahead from it."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    # ---- what all batches share -----------------------------------------------------------------------

    def _batch(
        self,
        count: int,
        request: Callable[[int], Sequence[Buffer]],
        reply: Callable[[Connection, int], Outcome],
        cost: Callable[[int], int],
        deadline: float,
    ) -> list[Outcome]:
        """One outcome per key, whatever happens; what is left after a fault shares one outcome."""
        if not count:  # no reply, so nothing is learnt about the server
            return []
        if time.monotonic() >= deadline:  # the caller was late, not the server
            return [Outcome.TIMEOUT] * count
        outcomes: list[Outcome] = []
        try:
            reused = self._connection is not None
            try:
                _exchange(self._connected(deadline), outcomes, count, request, reply, cost, deadline)
            except (ConnectionError, ProtocolDoubt):
                if outcomes or not reused:
                    raise
                # The server closed an idle connection, or was started anew: that says nothing about it now.
                self.close()
                _exchange(self._connected(deadline), outcomes, count, request, reply, cost, deadline)
        except (OSError, ProtocolDoubt, Refused) as fault:
            rest = Outcome.TIMEOUT if isinstance(fault, TimeoutError) else Outcome.FAILED
            self._fault(fault)
            return outcomes + [rest] * (count - len(outcomes))
        if self._breaker.succeeded():
            logger.warning("%s answers again", self._config.where)
        return outcomes

    def _fault(self, fault: Exception) -> None:
        self.close()
        if isinstance(fault, _LeftAlone):
            return
        if self._breaker.failed():
            what = str(fault) or type(fault).__name__
            logger.warning("%s: %s; blocks are computed until it answers", self._config.where, what)

    def _connected(self, deadline: float) -> Connection:
        if not self._breaker.allow():
            raise _LeftAlone
        if self._connection is None:
            by = min(deadline, time.monotonic() + self._config.timeouts.connect_ms / 1000)
            assert self._config.host is not None
            self._connection = Connection(self._config.host, self._config.port, by)
            self._handshake(self._connection, by)
            self._generation += 1
        return self._connection

    def _handshake(self, connection: Connection, deadline: float) -> None:
        """Authenticate and select; each answer must be right, or nothing on this connection can be trusted."""
        commands = [[b"PING"]]
        if self._config.password_file is not None:
            # Read at every connection, so that a rotated Secret is taken up without a restart.
            password = Path(self._config.password_file).read_bytes().strip()
            user = [self._config.username.encode()] if self._config.username else []
            commands.insert(0, [b"AUTH", *user, password])
        if self._config.database:
            commands.append([b"SELECT", b"%d" % self._config.database])
        for words in commands:
            connection.send([_command(*words)], deadline)
            line = connection.line(deadline)
            if line[:1] != b"+":
                raise Refused(f"{words[0].decode()} refused: {_harmless(line[1:], words).decode(errors='replace')}")


def _harmless(text: bytes, words: Sequence[bytes]) -> bytes:
    """A refusal's text, or its first word where the text repeats the password: "unknown command" repeats arguments."""
    return text.split(b" ")[0] if words[0] == b"AUTH" and words[-1][:4] in text else text


class _LeftAlone(OSError):
    """The breaker is open: not tried."""


def _exchange(
    connection: Connection,
    outcomes: list[Outcome],
    count: int,
    request: Callable[[int], Sequence[Buffer]],
    reply: Callable[[Connection, int], Outcome],
    cost: Callable[[int], int],
    deadline: float,
) -> None:
    """Send within the window and append the replies' outcomes in order, as far as it goes before a fault is raised."""
    sent = in_flight = 0
    while len(outcomes) < count:
        parts: list[Buffer] = []
        while sent < count and (
            sent == len(outcomes) or (in_flight + cost(sent) <= WINDOW_BYTES and sent - len(outcomes) < WINDOW_KEYS)
        ):
            parts += request(sent)
            in_flight += cost(sent)
            sent += 1
        if parts:
            connection.send(parts, deadline)
        in_flight -= cost(len(outcomes))
        outcomes.append(reply(connection, len(outcomes)))


# ---- RESP2, as far as it is needed: https://redis.io/docs/latest/develop/reference/protocol-spec/ -------------


def _one_of(connection: Connection, expected: Mapping[bytes, Outcome], deadline: float) -> Outcome:
    """A reply of one line. An error reply is complete, so the stream is still in step; anything else belongs to another
    command, and so would all that follows."""
    line = connection.line(deadline)
    if line[:1] == b"-":
        return Outcome.FAILED
    if line not in expected:
        raise ProtocolDoubt(f"unexpected reply {line[:20]!r}")
    return expected[line]


def _status(connection: Connection, word: bytes, deadline: float) -> Outcome:
    return _one_of(connection, {b"+" + word: Outcome.HIT}, deadline)


def _flag(deadline: float) -> Callable[[Connection, int], Outcome]:
    """A reply of 0 or 1 as MISS or HIT."""
    return lambda connection, _: _one_of(connection, {b":0": Outcome.MISS, b":1": Outcome.HIT}, deadline)


def _bulk_into(connection: Connection, view: memoryview, deadline: float) -> Outcome:
    line = connection.line(deadline)
    if line == b"$-1":
        return Outcome.MISS
    if line[:1] == b"-":
        return Outcome.FAILED
    if line[:1] != b"$" or not line[1:].isdigit():
        raise ProtocolDoubt(f"unexpected reply {line[:20]!r}")
    length = int(line[1:])
    if length == len(view):
        connection.fill(view, deadline)
    else:
        connection.skip(length, deadline)
    end = bytearray(2)
    connection.fill(memoryview(end), deadline)
    if end != b"\r\n":
        raise ProtocolDoubt("value without end")
    return Outcome.HIT if length == len(view) else Outcome.CORRUPT


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(word), word)


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(_bulk, words))
