"""A blocking TCP connection with absolute deadlines, for protocols that mix short lines and large values.

Kernel time-outs (SO_RCVTIMEO, SO_SNDTIMEO) are set before every call with the time that is left: Python's ``settimeout``
would make the socket non-blocking underneath and so take the effect from MSG_WAITALL, which is what keeps the number of
blocking returns, and with it the cost of the interpreter lock, small.

No call waits longer than the server may be silent. With MSG_WAITALL the kernel then returns what
came until then, and it knows how long ago the last of it came (TCP_INFO): a slow server costs a
call every ``stall_s``, and one that is gone is noticed ``stall_s`` after its last byte.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Sequence

from kvpool_connector.stores.questions import Unanswered
from kvpool_connector.stores.resolver import RESOLVER

Buffer = bytes | memoryview
_READ_AHEAD = 4096
_LONGEST_LINE = 4096
_MOST_BUFFERS = 1024  # of one sendmsg: Linux's UIO_MAXIOV
_LAST_DATA_RECEIVED = struct.Struct("=52xI")  # of struct tcp_info: 8 bytes, then numbers of 32 bits


class ProtocolDoubt(Exception):
    """The stream no longer makes sense: the connection must be closed."""


class Closed(ProtocolDoubt):
    """The server closed the connection before the first byte of what was to be read."""


class Late(TimeoutError):
    """The caller's deadline passed, whatever the server did."""

    def __init__(self, silent_s: float = 0.0) -> None:
        """Args:
        silent_s: so long before the deadline the last byte was received, or taken.
        """
        super().__init__("not ready in time")
        self.silent_s = silent_s


class Stalled(TimeoutError):
    """Not one byte was received, or taken, for as long as the server may be silent."""

    def __init__(self, stall_s: float) -> None:
        super().__init__(f"no byte for {stall_s * 1e3:.0f} ms")


class Connection:
    """Used by one thread. Raises TimeoutError, OSError or ProtocolDoubt; after any of them it must be closed."""

    def __init__(
        self,
        host: str,
        port: int,
        deadline: float,
        stall_s: float,
        *,
        quick_ack: bool = False,
    ) -> None:
        """Args:
        stall_s: how long the server may be silent, also before it accepts the connection: for its name, and all addresses
            that this has, together.
        quick_ack: for a server whose socket has no TCP_NODELAY: it holds a small reply back until the last one is
            acknowledged, which the kernel may put off for 40 ms.
        """
        self.stall_s = stall_s
        """May be changed between two calls."""
        began = time.monotonic()
        left = deadline - began
        if left <= 0:
            raise Late
        try:
            self._socket = _dial(host, port, began + min(left, stall_s))
        except TimeoutError as error:
            if stall_s >= left:
                raise Late(left) from None
            raise error if isinstance(error, Unanswered) else Stalled(stall_s) from None
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
            limit_s = self._limit(socket.SO_SNDTIMEO, deadline)
            try:
                sent = self._socket.sendmsg(views[:_MOST_BUFFERS])
            except BlockingIOError:
                raise self._nothing(limit_s) from None
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
        silent_s = 0.0
        while got < len(view):
            try:
                got += self._receive(view[got:], socket.MSG_WAITALL, deadline, silent_s)
            except (ConnectionResetError, ProtocolDoubt) as error:
                raise error if got else Closed(str(error)) from None
            if got < len(view):
                silent_s = self._silent_s()

    def skip(self, length: int, deadline: float) -> None:
        """Read and forget."""
        scratch = memoryview(bytearray(min(length, 1 << 16)))
        while length:
            part = scratch[: min(length, len(scratch))]
            self.fill(part, deadline)
            length -= len(part)

    def _receive(self, view: memoryview, flags: int, deadline: float, silent_s: float = 0.0) -> int:
        """Take what comes, and return how many bytes, at least one.

        Args:
            silent_s: for so long none had come when this was called.
        """
        if self._quick_ack:  # the kernel forgets it after a few segments
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        limit_s = self._limit(socket.SO_RCVTIMEO, deadline, silent_s)
        try:
            count = self._socket.recv_into(view, len(view), flags)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise self._nothing(limit_s, silent_s) from None
            raise
        if count == 0:
            raise ProtocolDoubt("closed by the server")
        return count

    def _limit(self, option: int, deadline: float, silent_s: float = 0.0) -> float:
        """Tell the kernel how long the next call may wait for its first byte, and return that, in
        seconds. Its time-out counts per call, so this precedes every call."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise Late(silent_s)
        if silent_s >= self.stall_s:
            raise Stalled(self.stall_s)
        limit_s = min(left, self.stall_s - silent_s)
        # Never 0: that would mean "for ever".
        seconds, micros = divmod(max(int(limit_s * 1e6), 1), 1_000_000)
        self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, micros))
        return limit_s

    def _nothing(self, limit_s: float, silent_s: float = 0.0) -> TimeoutError:
        """What it means that a call waited for so long in vain, after such a silence."""
        if limit_s < self.stall_s - silent_s:  # as `_limit` chose
            return Late(silent_s + limit_s)
        return Stalled(self.stall_s)

    def _silent_s(self) -> float:
        """How long ago the last byte came: ``tcpi_last_data_recv``, in milliseconds, of Linux's
        include/uapi/linux/tcp.h."""
        size = _LAST_DATA_RECEIVED.size
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        (milliseconds,) = _LAST_DATA_RECEIVED.unpack(info)
        return float(milliseconds) / 1e3


def _dial(host: str, port: int, until: float) -> socket.socket:
    """Return a connected socket. Where a name has several addresses, each gets an equal share of the time that is left.

    Raises:
        TimeoutError: the time passed; `Unanswered` where it was the name's.
        OSError: the name has no address, or none of them takes the connection.
    """
    addresses = RESOLVER.addresses(host, port, until)
    fault: OSError = TimeoutError()
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        left_s = (until - time.monotonic()) / left
        if left_s <= 0:
            raise TimeoutError
        try:
            dialled = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:  # a family that this kernel does not have
            fault = error
            continue
        try:
            dialled.settimeout(left_s)
            dialled.connect(address.at)
        except OSError as error:
            fault = error
            dialled.close()
        else:
            return dialled
    raise fault
