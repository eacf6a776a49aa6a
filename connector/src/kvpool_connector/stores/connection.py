"""A blocking TCP connection with absolute deadlines, for protocols that mix short lines and large values.

Kernel time-outs (SO_RCVTIMEO, SO_SNDTIMEO) are set before every call with the time that is left: Python's ``settimeout``
would make the socket non-blocking underneath and so take the effect from MSG_WAITALL, which is what keeps the number of
blocking returns, and with it the cost of the interpreter lock, small.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Sequence

Buffer = bytes | memoryview
_READ_AHEAD = 4096
_LONGEST_LINE = 4096
_MOST_BUFFERS = 1024  # of one sendmsg: Linux's UIO_MAXIOV


class ProtocolDoubt(Exception):
    """The stream no longer makes sense: the connection must be closed."""


class Closed(ProtocolDoubt):
    """The server closed the connection before the first byte of what was to be read."""


class Connection:
    """Used by one thread. Raises TimeoutError, OSError or ProtocolDoubt; after any of them it must be closed."""

    def __init__(self, host: str, port: int, deadline: float, *, quick_ack: bool = False) -> None:
        """Args:
        quick_ack: for a server whose socket has no TCP_NODELAY: it holds a small reply back until the last one is
            acknowledged, which the kernel may put off for 40 ms.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            self._socket = socket.create_connection((host, port), timeout=left)
        except UnicodeError:  # from IDNA, for names such as "a..b"
            raise OSError(f"{host!r} is not a host name") from None
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._quick_ack = quick_ack
        self._ahead = bytearray()  # received, not yet consumed

    def close(self) -> None:
        self._socket.close()

    def send(self, parts: Sequence[Buffer], deadline: float) -> None:
        """Send all parts in order, from where they lie."""
        views = [memoryview(part) for part in parts]
        while views:
            try:
                sent = self._ready(socket.SO_SNDTIMEO, deadline).sendmsg(views[:_MOST_BUFFERS])
            except BlockingIOError:
                raise TimeoutError from None
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def line(self, deadline: float) -> bytes:
        """The next line without its end. Takes what is there: waiting for a full buffer would hang on a short reply."""
        while (end := self._ahead.find(b"\r\n")) < 0:
            if len(self._ahead) > _LONGEST_LINE:
                raise ProtocolDoubt("no line end")
            chunk = bytearray(_READ_AHEAD)
            count = self._receive(memoryview(chunk), 0, deadline)
            self._ahead += chunk[:count]
        if end > _LONGEST_LINE:
            raise ProtocolDoubt("line too long")
        line = bytes(self._ahead[:end])
        del self._ahead[: end + 2]
        return line

    def fill(self, view: memoryview, deadline: float) -> None:
        """Fill the view: first from what was read ahead, then straight from the socket in few blocking calls."""
        got = min(len(view), len(self._ahead))
        view[:got] = self._ahead[:got]
        del self._ahead[:got]
        while got < len(view):
            try:
                got += self._receive(view[got:], socket.MSG_WAITALL, deadline)
            except (ConnectionResetError, ProtocolDoubt) as error:
                raise error if got else Closed(str(error)) from None

    def skip(self, length: int, deadline: float) -> None:
        """Read and forget."""
        scratch = memoryview(bytearray(min(length, 1 << 16)))
        while length:
            part = scratch[: min(length, len(scratch))]
            self.fill(part, deadline)
            length -= len(part)

    def _receive(self, view: memoryview, flags: int, deadline: float) -> int:
        if self._quick_ack:  # the kernel forgets it after a few segments
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            count = self._ready(socket.SO_RCVTIMEO, deadline).recv_into(view, len(view), flags)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise TimeoutError from None
            raise
        if count == 0:
            raise ProtocolDoubt("closed by the server")
        return count

    def _ready(self, option: int, deadline: float) -> socket.socket:
        """Give the kernel the time that is left; its time-out counts per call, so this precedes every call."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        seconds, micros = divmod(max(int(left * 1e6), 1), 1_000_000)  # never 0: that would mean "for ever"
        self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, micros))
        return self._socket
