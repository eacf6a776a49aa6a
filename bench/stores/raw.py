"""A raw stream over loopback: what a TCP connection to another process carries when nobody has to say anything.

    python -m bench.stores.raw        the other process: prints its port, serves one connection after the other

A request is 9 bytes, ``r`` or ``w`` and a length. For ``r`` the server sends so many bytes, for ``w`` it takes them and answers
with one byte. Client and server use calls of up to 4 MiB. The server's memory is as large as a batch of the stores' benchmark and
is used from its beginning to its end, as a store's values are: one small buffer would stay in the processor's cache.
"""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
import sys
from types import TracebackType
from typing import Self

_REQUEST = struct.Struct("<cQ")
_CALL = 4 << 20
_MEMORY = 16 << 20


class Stream:
    """The client's end, with a server process of its own."""

    def __init__(self) -> None:
        self._server = subprocess.Popen([sys.executable, "-m", "bench.stores.raw"], stdout=subprocess.PIPE, text=True)
        port = int((self._server.stdout or sys.stdin).readline())
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, buffers: list[memoryview]) -> None:
        """Fill them one after the other from one stream."""
        self._socket.sendall(_REQUEST.pack(b"r", sum(map(len, buffers))))
        for buffer in buffers:
            if self._socket.recv_into(buffer, len(buffer), socket.MSG_WAITALL) != len(buffer):
                raise ConnectionError("the raw stream ended")

    def write(self, buffers: list[memoryview]) -> None:
        """Send them one after the other, and wait until all is there."""
        self._socket.sendall(_REQUEST.pack(b"w", sum(map(len, buffers))))
        for buffer in buffers:
            self._socket.sendall(buffer)
        if self._socket.recv(1) != b"k":
            raise ConnectionError("the raw stream ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._server.terminate()
        self._server.wait(10)


def serve() -> None:
    """Until ended."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    memory = memoryview(bytearray(b"\x5a" * _MEMORY))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while len(head := connection.recv(_REQUEST.size, socket.MSG_WAITALL)) == _REQUEST.size:
                verb, left = _REQUEST.unpack(head)
                for start in itertools.cycle(range(0, _MEMORY, _CALL)):
                    if not left:
                        break
                    part = memory[start : start + min(left, _CALL)]
                    if verb == b"r":
                        connection.sendall(part)
                    elif connection.recv_into(part, len(part), socket.MSG_WAITALL) != len(part):
                        break
                    left -= len(part)
                if verb == b"w":
                    connection.sendall(b"k")


if __name__ == "__main__":
    serve()
