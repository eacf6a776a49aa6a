"""A TCP proxy on loopback between an operator and the API server, which can be cut like a cable."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """Hands bytes on, both ways, until it is cut. Threads of its own.

    What is sent during a cut is lost, and who waits for an answer waits: no end of a connection is
    heard of. Connections of before are of no use afterwards, as after a cut that outlasts them.
    """

    def __init__(self, server: str) -> None:
        """Take the URL of the API server."""
        target = urlsplit(server)
        self._target = (str(target.hostname), int(target.port or 443))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Let nothing pass from now on."""
        with self._lock:
            self._is_cut = True

    def mend(self) -> None:
        """Let new connections pass, and end those of before."""
        with self._lock:
            self._is_cut = False
            old, self._sockets = self._sockets, []
        for one in old:
            _end(one)

    def close(self) -> None:
        """End all connections, and listen no more."""
        self._listener.close()
        self.mend()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.append(near)
                is_cut = self._is_cut
            if not is_cut:
                self._connect(near)

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target)
        except OSError:
            _end(near)
            return
        with self._lock:
            self._sockets.append(far)
        for pair in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    if self._is_cut:
                        return
                sink.sendall(data)
            _end(sink)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
