"""``lmcache_server`` on loopback, in the engine's environment (it needs torch) with the package laid over it."""

from __future__ import annotations

import socket
import struct

from testkit.engine import ENGINE_PYTHON, ROOT
from testkit.servers import Server

_OVERLAY = ROOT / ".venvs/lmserver"
_HEALTH = struct.pack("<9i150s", 5, 0, 4, 6, 0, 0, 0, 0, 0, b"ready@1@0@0@uint8".ljust(150))


_LAUNCH = """
import socket, sys
class Reusable(socket.socket):
    def bind(self, address):
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().bind(address)
socket.socket = Reusable
from lmcache.v1.server.__main__ import main
main()
"""


class LMCacheServer(Server):
    """A dictionary behind TCP: no password, no limit. Its port can be used again at once after a kill, which the program itself
    does not ask for and on a cluster a new Pod's address gives."""

    def __init__(self, port: int | None = None) -> None:
        super().__init__("lmcache_server", port)

    def remote(self, **fields: object) -> dict[str, object]:
        """The connector's configuration for it."""
        return {"type": "lmcache", "host": self.host, "port": self.port} | fields

    def command(self) -> tuple[list[str], dict[str, str]]:
        if not (_OVERLAY / "lmcache").exists() or not ENGINE_PYTHON.exists():
            raise FileNotFoundError("lmcache_server: run tools/setup.sh engine servers")
        command = [str(ENGINE_PYTHON), "-c", _LAUNCH, self.host, str(self.port)]
        return command, {"PYTHONPATH": str(_OVERLAY), "LMCACHE_LOG_LEVEL": "WARNING"}

    def answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as connection:
                connection.sendall(_HEALTH)
                return len(connection.recv(36)) == 36
        except OSError:
            return False
