"""The RESP2 protocol, as far as it is needed: https://redis.io/docs/latest/develop/reference/protocol-spec/

All readers raise TimeoutError, OSError or ProtocolDoubt, after which the connection must be closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvpool_connector.config.remote import Credentials
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.connection import Connection, ProtocolDoubt
from kvpool_connector.stores.passwords import PASSWORDS
from kvpool_connector.stores.stream import Refused

Value = bytes | int | None | list["Value"]
_LARGEST_WORD = 64 << 10
_MOST_ELEMENTS = 1024
_DEEPEST = 4


def bulk(word: bytes) -> bytes:
    """A word of a command."""
    return b"$%d\r\n%s\r\n" % (len(word), word)


def command(*words: bytes) -> bytes:
    """A whole command."""
    return b"*%d\r\n" % len(words) + b"".join(map(bulk, words))


def one_of(connection: Connection, expected: Mapping[bytes, Outcome], deadline: float) -> tuple[Outcome, bytes]:
    """A reply of one line, and the line. An error reply is complete, so the stream is still in step; anything else that is not
    expected belongs to another command, and so would all that follows."""
    line = connection.line(deadline)
    if line[:1] == b"-":
        return Outcome.FAILED, line
    if line not in expected:
        raise ProtocolDoubt(f"unexpected reply {line[:20]!r}")
    return expected[line], line


def count_of(connection: Connection, most: int, deadline: float) -> tuple[Outcome, bytes]:
    """A number of things of which there are ``most``, and the line. HIT: all; MISS: fewer."""
    line = connection.line(deadline)
    if line[:1] == b"-":
        return Outcome.FAILED, line
    if line[:1] != b":" or not line[1:].isdigit() or int(line[1:]) > most:
        raise ProtocolDoubt(f"unexpected reply {line[:20]!r}")
    return Outcome.HIT if int(line[1:]) == most else Outcome.MISS, line


def bulk_into(connection: Connection, view: memoryview, deadline: float) -> tuple[Outcome, bytes]:
    """A value, into the view if it has the view's length, and the line before it."""
    line = connection.line(deadline)
    if line == b"$-1":
        return Outcome.MISS, line
    if line[:1] == b"-":
        return Outcome.FAILED, line
    length = _length(line, b"$")
    if length == len(view):
        connection.fill(view, deadline)
    else:
        connection.skip(length, deadline)
    _end(connection, deadline)
    return Outcome.HIT if length == len(view) else Outcome.CORRUPT, line


def call(connection: Connection, words: Sequence[bytes], deadline: float) -> Value:
    """Send a command and read its small reply, of any form.

    Raises:
        Refused: an error reply; the text names the command and holds no password.
    """
    connection.send([command(*words)], deadline)
    return _value(connection, words, deadline, 0)


def log_in(connection: Connection, credentials: Credentials, deadline: float) -> None:
    """Authenticate, if there is something to authenticate with, and see that the server answers.

    Raises:
        Refused: the server's reason.
        OSError: the password's file cannot be read, or not in time.
    """
    if credentials.password_file is not None:
        _authenticate(connection, credentials.username or "", credentials.password_file, deadline)
    expect_status(connection, [b"PING"], deadline)


def _authenticate(connection: Connection, username: str, file: str, deadline: float) -> None:
    user = [username.encode()] if username else []
    present, *former = PASSWORDS.to_try(file, deadline)
    try:
        expect_status(connection, [b"AUTH", *user, present], deadline)
        taken = present
    except Refused as refused:
        if refused.word != "WRONGPASS" or not former:
            raise
        try:
            expect_status(connection, [b"AUTH", *user, former[0]], deadline)
        except Refused:
            raise refused from None  # about the password that is meant to be right
        taken = former[0]
    PASSWORDS.was_taken(file, taken)


def expect_status(connection: Connection, words: Sequence[bytes], deadline: float) -> None:
    """A command of the handshake: its answer must be a status, or nothing on this connection can be trusted.

    Raises:
        Refused: anything else.
    """
    connection.send([command(*words)], deadline)
    line = connection.line(deadline)
    if line[:1] != b"+":
        raise _refusal(line, words)


def _value(connection: Connection, words: Sequence[bytes], deadline: float, depth: int) -> Value:
    line = connection.line(deadline)
    if line[:1] == b"-":
        raise _refusal(line, words)
    if line[:1] == b"+":
        return line[1:]
    if line in (b"$-1", b"*-1"):
        return None
    if line[:1] == b":" and line[1:].isdigit():
        return int(line[1:])
    if line[:1] == b"$" and (length := _length(line, b"$")) <= _LARGEST_WORD:
        word = bytearray(length)
        connection.fill(memoryview(word), deadline)
        _end(connection, deadline)
        return bytes(word)
    if line[:1] == b"*" and depth < _DEEPEST and (length := _length(line, b"*")) <= _MOST_ELEMENTS:
        return [_value(connection, words, deadline, depth + 1) for _ in range(length)]
    raise ProtocolDoubt(f"unexpected reply {line[:20]!r}")


def _length(line: bytes, kind: bytes) -> int:
    if line[:1] != kind or not line[1:].isdigit():
        raise ProtocolDoubt(f"unexpected reply {line[:20]!r}")
    return int(line[1:])


def _end(connection: Connection, deadline: float) -> None:
    end = bytearray(2)
    connection.fill(memoryview(end), deadline)
    if end != b"\r\n":
        raise ProtocolDoubt("value without end")


def _refusal(line: bytes, words: Sequence[bytes]) -> Refused:
    """A refusal's text, or its first word where the text repeats the password: "unknown command" repeats arguments."""
    text = line[1:]
    if words[0] == b"AUTH" and words[-1][:4] in text:
        text = text.split(b" ")[0]
    word = line[1:].split(b" ", 1)[0].decode(errors="replace")
    return Refused(f"{words[0].decode()} refused: {text.decode(errors='replace')}", word)
