"""Redis and Valkey: the data path, in the RESP2 protocol, to a lone server or to the primary of a fail-over group.

Why not redis-py: measured on one core it needs three times the CPU for 1 MiB values, and its time-outs multiply by its
retries, so that a stopped server holds a call for 25 s (docs/adr/0003-own-resp-client.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kvpool_connector.config import RedisRemote
from kvpool_connector.log import get_logger
from kvpool_connector.stores.base import Outcome, all_there
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.connection import Buffer, Connection
from kvpool_connector.stores.refusals import SPELLS, refusal_of, words_of
from kvpool_connector.stores.resp import bulk, bulk_into, command, count_of, expect_status, log_in, one_of
from kvpool_connector.stores.sentinel import Sentinels, assert_primary
from kvpool_connector.stores.stream import StreamStore

_QUESTION_COST = 128

logger = get_logger(__name__)


class RedisStore(StreamStore):
    """One connection to the server, or to what the sentinels say is the primary."""

    def __init__(self, config: RedisRemote, breaker: Breaker) -> None:
        super().__init__(config.where, config.timeouts, breaker)
        self._config = config
        group = config.sentinel
        self._sentinels = None if group is None else Sentinels(group, self._stall_s)
        self._together = self._touches = True  # until the server says that it cannot
        self._expiry = b"" if config.ttl_s is None else b"$2\r\nEX\r\n" + bulk(b"%d" % config.ttl_s)
        self._set = b"*%d\r\n$3\r\nSET\r\n" % (3 if config.ttl_s is None else 5)

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Ask for presence, one verdict per key."""
        return self._questions(b"EXISTS", keys, deadline)

    def exists_all(self, groups: Sequence[Sequence[bytes]], deadline: float, *, touch: bool = False) -> list[Outcome]:
        """One command for each group, which counts the names that are there. TOUCH counts in the same way."""
        verb = b"TOUCH" if touch and self._touches else b"EXISTS"
        if not self._together:
            return all_there(groups, lambda names: self._questions(verb, names, deadline))

        def reply(connection: Connection, i: int) -> Outcome:
            outcome, line = count_of(connection, len(groups[i]), deadline)
            if outcome is not Outcome.FAILED:
                return outcome
            if line.startswith(b"-CROSSSLOT"):  # cluster mode: names of one command must lie in one slot
                self._together = False
            elif verb == b"TOUCH" and line.startswith((b"-NOPERM", b"-ERR")):  # not allowed, or not known
                self._touches = False
            else:
                self._refused(line)
            return outcome

        outcomes = self._batch(
            len(groups),
            lambda i: [command(verb, *groups[i])],
            reply,
            lambda i: _QUESTION_COST * len(groups[i]),
            deadline,
        )
        if not self._together or (verb == b"TOUCH" and not self._touches):
            return self.exists_all(groups, deadline, touch=touch)
        return outcomes

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Read each value straight into its buffer."""

        def value(connection: Connection, i: int) -> Outcome:
            outcome, line = bulk_into(connection, buffers[i], deadline)
            if outcome is Outcome.FAILED:
                self._refused(line)
            return outcome

        return self._batch(
            len(keys),
            lambda i: [command(b"GET", keys[i])],
            value,
            lambda i: len(buffers[i]),
            deadline,
        )

    def put_from(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Send each buffer from where it lies."""

        def request(i: int) -> list[Buffer]:
            head = self._set + bulk(keys[i]) + b"$%d\r\n" % len(buffers[i])
            return [head, buffers[i], b"\r\n" + self._expiry]

        reply = self._one_of({b"+OK": Outcome.HIT}, deadline)
        return self._batch(
            len(keys), request, reply, lambda i: len(buffers[i]), deadline, patient=True,
        )  # fmt: skip

    def delete(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Remove without blocking the server (UNLINK)."""
        return self._questions(b"UNLINK", keys, deadline)

    def ping(self, deadline: float) -> Outcome:
        """One round trip."""
        reply = self._one_of({b"+PONG": Outcome.HIT}, deadline)
        return self._batch(1, lambda i: [command(b"PING")], reply, lambda i: 0, deadline)[0]

    def _questions(self, verb: bytes, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Commands that are answered by 0 or 1."""
        reply = self._one_of({b":0": Outcome.MISS, b":1": Outcome.HIT}, deadline)
        return self._batch(len(keys), lambda i: [command(verb, keys[i])], reply, lambda i: _QUESTION_COST, deadline)

    def _one_of(self, expected: dict[bytes, Outcome], deadline: float) -> Callable[[Connection, int], Outcome]:
        def reply(connection: Connection, _: int) -> Outcome:
            outcome, line = one_of(connection, expected, deadline)
            if outcome is Outcome.FAILED:
                self._refused(line)
            return outcome

        return reply

    def _refused(self, line: bytes) -> None:
        """An error reply: counted, told once, and answered by a new connection where that may help."""
        refusal = refusal_of(line)
        self.errors[refusal.event] += 1
        if refusal.elsewhere:
            self._breaker.elsewhere()
        if SPELLS.begins(self._where, refusal.word, time.monotonic()):
            logger.warning(
                "%s refuses: %s. While it does, %s: %s",
                self._where,
                words_of(line),
                refusal.consequence,
                refusal.advice,
            )

    def _dial(self, deadline: float) -> Connection:
        if self._sentinels is not None:
            return self._sentinels.connect(self._greeted, deadline)
        assert self._config.host is not None
        return self._greeted(self._config.host, self._config.port, deadline)

    def _greeted(self, host: str, port: int, deadline: float) -> Connection:
        """Each answer must be right, or nothing on this connection can be trusted."""
        connection = Connection(host, port, deadline, self._stall_s)
        try:
            log_in(connection, self._config, deadline)
            if self._sentinels is not None:
                assert_primary(connection, deadline)
            if self._config.database:
                expect_status(connection, [b"SELECT", b"%d" % self._config.database], deadline)
        except BaseException:
            connection.close()
            raise
        return connection
