"""``lmcache_server``, in its own protocol (lmcache 0.5.6, ``lmcache/v1/protocol.py`` and ``lmcache/v1/server/__main__.py``).

A request is 186 bytes: nine 32-bit integers (command, length, format, type, location, four of a shape) and the key, padded
with spaces to 150. A reply is 36 bytes: code, length, format, type, shape, location. PUT is followed by the value and has no
reply; HEALTH, which has one, is the barrier behind a group of PUTs.

What the server is: a dictionary. It evicts nothing, knows no password and has no command to delete. A PUT that breaks off in
mid-value leaves a key whose GET ends in a closed connection: that is CORRUPT here, and `delete` lets the next write replace
it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from kvpool_connector.config import LMCacheRemote
from kvpool_connector.stores.base import Outcome, all_there
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.connection import Buffer, Closed, Connection, ProtocolDoubt
from kvpool_connector.stores.stream import StreamStore, Unreadable

_PUT, _GET, _EXIST, _HEALTH = 1, 2, 3, 5
_SUCCESS, _FAIL = 200, 400
_BINARY, _UINT8 = 4, 6  # MemoryFormat.BINARY; DTYPE_TO_INT[torch.uint8]
_REQUEST = struct.Struct("<9i150s")
_REPLY = struct.Struct("<9i")
_LARGEST = (1 << 31) - 1
"""Bytes of a value: its length is a signed 32-bit integer."""
_GROUP_BYTES = 1 << 20
_GROUP_KEYS = 256
"""PUTs in front of a barrier; two groups fit the window."""
_MOST_REPLACEABLE = 10_000


def wire_key(name: bytes) -> bytes:
    """The key under which a part lies, in the form that the server parses: model, world size, worker, hash, type.

    The hash is BLAKE2b-256 of the name: part names are longer than the 150 bytes that a key may have, and the server drops
    leading zeros of a hash, so that only hashes of one length are as different as their names.
    """
    return b"kvpool@1@0@%s@uint8" % hashlib.blake2b(name, digest_size=32).hexdigest().encode()


class LMCacheStore(StreamStore):
    """One connection."""

    _repeats = (
        True  # a value that was cut off costs a connection; with others asked for behind it, no reply arrives at all
    )

    def __init__(self, config: LMCacheRemote, breaker: Breaker) -> None:
        super().__init__(config.where, config.timeouts, breaker)
        self._config = config
        self._replaceable: set[bytes] = set()
        """Names that were to be deleted: absent for this client until it puts them."""

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Ask for presence, one verdict per key."""
        outcomes = self._batch(
            len(keys),
            lambda i: [_request(_EXIST, wire_key(keys[i]))],
            lambda connection, _: _flag(connection, deadline),
            lambda i: _REQUEST.size,
            deadline,
        )
        return [
            Outcome.MISS if outcome is Outcome.HIT and key in self._replaceable else outcome
            for key, outcome in zip(keys, outcomes, strict=True)
        ]

    def exists_all(self, groups: Sequence[Sequence[bytes]], deadline: float, *, touch: bool = False) -> list[Outcome]:
        """The protocol knows no question about several keys, and the server evicts nothing."""
        return all_there(groups, lambda names: self.exists(names, deadline))

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Read each value straight into its buffer."""
        return self._batch(
            len(keys),
            lambda i: [_request(_GET, wire_key(keys[i]))],
            lambda connection, i: _value_into(connection, buffers[i], deadline),
            lambda i: len(buffers[i]) + _REQUEST.size,
            deadline,
        )

    def put_from(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Send each buffer from where it lies. A value of 2 GiB or more is FAILED: its length cannot be said."""
        fit = [i for i in range(len(keys)) if len(buffers[i]) <= _LARGEST]
        groups = _groups(fit, buffers)

        def request(number: int) -> list[Buffer]:
            parts: list[Buffer] = []
            for i in groups[number]:
                parts += [_request(_PUT, wire_key(keys[i]), len(buffers[i])), buffers[i]]
            return [*parts, _request(_HEALTH)]

        of_groups = self._batch(
            len(groups),
            request,
            lambda connection, _: _healthy(connection, deadline),
            lambda number: sum(len(buffers[i]) + _REQUEST.size for i in groups[number]),
            deadline,
            patient=True,
        )
        outcomes = [Outcome.FAILED] * len(keys)
        for group, outcome in zip(groups, of_groups, strict=True):
            for i in group:
                outcomes[i] = outcome
                if outcome is Outcome.HIT:
                    self._replaceable.discard(keys[i])
        return outcomes

    def delete(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """FAILED: the protocol has no such command. What this client is told to delete it calls absent from then on, so that
        its next write replaces a damaged value instead of being skipped."""
        if len(self._replaceable) + len(keys) <= _MOST_REPLACEABLE:
            self._replaceable.update(keys)
        return [Outcome.FAILED] * len(keys)

    def ping(self, deadline: float) -> Outcome:
        """One round trip."""
        return self._batch(
            1,
            lambda i: [_request(_HEALTH)],
            lambda connection, _: _healthy(connection, deadline),
            lambda i: 0,
            deadline,
        )[0]

    def _dial(self, deadline: float) -> Connection:
        host, port = self._config.host, self._config.port
        connection = Connection(host, port, deadline, self._stall_s, quick_ack=True)
        try:
            connection.send([_request(_HEALTH)], deadline)
            _healthy(connection, deadline)  # something else that listens there would not answer so
        except BaseException:
            connection.close()
            raise
        return connection


def _groups(numbers: Sequence[int], buffers: Sequence[memoryview]) -> list[list[int]]:
    """Neighbours together, up to a group's size; one larger value is a group of its own."""
    groups: list[list[int]] = []
    size = 0
    for i in numbers:
        size += len(buffers[i])
        if not groups or size > _GROUP_BYTES or len(groups[-1]) == _GROUP_KEYS:
            groups.append([])
            size = len(buffers[i])
        groups[-1].append(i)
    return groups


def _request(command: int, key: bytes = wire_key(b""), length: int = 0) -> bytes:
    """HEALTH has a key too: the server parses it before it looks at the command."""
    return _REQUEST.pack(command, length, _BINARY, _UINT8, 0, length, 0, 0, 0, key.ljust(150))


def _reply(connection: Connection, deadline: float) -> tuple[bool, int]:
    """Whether there is a value, and its length."""
    header = bytearray(_REPLY.size)
    connection.fill(memoryview(header), deadline)
    code, length, *_ = _REPLY.unpack(header)
    if code not in (_SUCCESS, _FAIL) or length < 0 or (code == _FAIL and length):
        raise ProtocolDoubt(f"unexpected reply {bytes(header[:8])!r}")
    return code == _SUCCESS, length


def _flag(connection: Connection, deadline: float) -> Outcome:
    found, length = _reply(connection, deadline)
    if length:
        raise ProtocolDoubt("a value was sent where none was asked for")
    return Outcome.HIT if found else Outcome.MISS


def _healthy(connection: Connection, deadline: float) -> Outcome:
    if _flag(connection, deadline) is not Outcome.HIT:
        raise ProtocolDoubt("not a health answer")
    return Outcome.HIT


def _value_into(connection: Connection, view: memoryview, deadline: float) -> Outcome:
    found, length = _reply(connection, deadline)
    if not found:
        return Outcome.MISS
    try:
        if length == len(view):
            connection.fill(view, deadline)
            return Outcome.HIT
        connection.skip(length, deadline)
    except Closed:
        raise Unreadable from None
    return Outcome.CORRUPT
