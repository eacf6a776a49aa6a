"""Redis and Valkey: the data path, in the RESP2 protocol, to a lone server or to the primary of a fail-over group.

Why not redis-py: measured on one core it needs three times the CPU for 1 MiB values, and its time-outs multiply by its
retries, so that a stopped server holds a call for 25 s (docs/adr/0003-own-resp-client.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvpool_connector.config import RedisRemote
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.connection import Buffer, Connection
from kvpool_connector.stores.resp import bulk, bulk_into, command, expect_status, log_in, one_of
from kvpool_connector.stores.sentinel import Sentinels, assert_primary
from kvpool_connector.stores.stream import StreamStore

_QUESTION_COST = 128
_ELSEWHERE = (b"-READONLY", b"-LOADING", b"-MASTERDOWN")
"""What a server says that is not, or not any more, or not yet the primary: redis/src/server.c, ``processCommand``."""


class RedisStore(StreamStore):
    """One connection to the server, or to what the sentinels say is the primary."""

    def __init__(self, config: RedisRemote, breaker: Breaker) -> None:
        super().__init__(config.where, config.timeouts, breaker)
        self._config = config
        group = config.sentinel
        self._sentinels = None if group is None else Sentinels(group, self._stall_s)
        self._elsewhere = False
        self._expiry = b"" if config.ttl_s is None else b"$2\r\nEX\r\n" + bulk(b"%d" % config.ttl_s)
        self._set = b"*%d\r\n$3\r\nSET\r\n" % (3 if config.ttl_s is None else 5)

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Ask for presence, one verdict per key."""
        return self._questions(b"EXISTS", keys, deadline)

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Read each value straight into its buffer."""
        return self._batch(
            len(keys),
            lambda i: [command(b"GET", keys[i])],
            lambda connection, i: bulk_into(connection, buffers[i], deadline),
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
            self._elsewhere |= line.startswith(_ELSEWHERE)
            return outcome

        return reply

    def _connected(self, deadline: float) -> Connection:
        if self._elsewhere and self._sentinels is not None:
            self.close()  # the sentinels know by now who the primary is, or will
        self._elsewhere = False
        return super()._connected(deadline)

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
