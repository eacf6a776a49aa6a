"""The readiness of Mooncake's masters, as bash runs it: what is asked, what is taken from the answer, and that it ends."""

from __future__ import annotations

import socketserver
import subprocess
import threading
from collections.abc import Iterator

import pytest

from kvpool_operator.desired.stores import mooncake
from testkit.patience import PATIENCE_S, promptly


class _Master(socketserver.StreamRequestHandler):
    """Stands in for a master, which needs its package and etcd. As Mooncake's server, it closes when it is asked to and not
    because of HTTP/1.0."""

    def handle(self) -> None:
        lines = [line.strip().lower() for line in iter(self.rfile.readline, b"\r\n")]
        body = self.server.answer  # type: ignore[attr-defined]
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        if b"connection: close" not in lines:
            self.rfile.read()  # until the other side has gone


@pytest.fixture
def master() -> Iterator[socketserver.ThreadingTCPServer]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Master) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(("answer", "ready"), [(b'{"present":true}', True), (b'{"present":false}', False)])
def test_a_master_is_ready_if_it_knows_a_leader(
    master: socketserver.ThreadingTCPServer, answer: bytes, ready: bool
) -> None:
    master.answer = answer  # type: ignore[attr-defined]
    command = mooncake.LEADER_IS_KNOWN.format(port=master.server_address[1])
    with promptly(1.9):  # else it waited for `timeout` although the answer was complete
        done = subprocess.run(["bash", "-c", command], check=False, timeout=PATIENCE_S)
    assert (done.returncode == 0) is ready
