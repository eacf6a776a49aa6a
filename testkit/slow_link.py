"""A TCP forwarder with a bandwidth limit: a network that is slower than this machine's loopback. A process of its own, so that
its work does not share an interpreter with what is measured."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType
from typing import Self

from testkit.ports import free_port
from testkit.servers import wait_until

_PIECE = 16 << 10


class SlowLink:
    """Forwards connections to a server; both directions share ``bytes_per_second``, which may be changed at any time."""

    def __init__(self, host: str, port: int, bytes_per_second: float) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        self._target = (host, port)
        context = multiprocessing.get_context("fork")
        self._rate: Synchronized[float] = context.Value("d", bytes_per_second)
        self._process = context.Process(target=_serve, args=(self.port, self._target, self._rate), daemon=True)

    def set_rate(self, bytes_per_second: float) -> None:
        """From now on."""
        self._rate.value = bytes_per_second

    def __enter__(self) -> Self:
        self._process.start()
        wait_until("the slow link listens", self._listens)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join(5)

    def _listens(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


class _Bucket:
    """Time is handed out: whoever sends a piece waits until the link is free again."""

    def __init__(self, rate: Synchronized[float]) -> None:
        self._rate, self._lock, self._free_at = rate, threading.Lock(), 0.0

    def take(self, nbytes: int) -> None:
        """Wait until so many bytes have passed."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + nbytes / self._rate.value
            until = self._free_at
        time.sleep(max(until - now, 0))


def _serve(port: int, target: tuple[str, int], rate: Synchronized[float]) -> None:
    bucket = _Bucket(rate)
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            client, _ = server.accept()
            try:
                upstream = socket.create_connection(target, timeout=5)
            except OSError:
                client.close()
                continue
            upstream.settimeout(None)
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(target=_pump, args=(source, sink, bucket), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, bucket: _Bucket) -> None:
    try:
        while piece := source.recv(_PIECE):
            bucket.take(len(piece))
            sink.sendall(piece)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            end.close()
