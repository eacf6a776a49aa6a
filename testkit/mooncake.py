"""A Mooncake pool on loopback: one master and one store node that lends it memory."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from testkit.engine import ROOT
from testkit.ports import free_port
from testkit.servers import Server, wait_until

OVERLAY = ROOT / ".venvs/mooncake"
_LIBRARIES = ("libnl-3.so.200", "libnl-route-3.so.200", "libibverbs.so.1", "libnuma.so.1")


def _program(name: str) -> str:
    path = OVERLAY / "mooncake" / name
    if not path.exists():
        raise FileNotFoundError(f"{name}: run tools/setup.sh servers")
    return str(path)


def _folders() -> list[Path]:
    return [folder for folder in OVERLAY.glob("debian/**/*-linux-gnu") if folder.is_dir()]


def libraries() -> str:
    """For LD_LIBRARY_PATH: what programs of RDMA's family are linked to."""
    return ":".join(map(str, _folders()))


def make_importable() -> None:
    """Lay the package over this process's environment, with the libraries that it is linked to."""
    _program("mooncake_master")
    for name in _LIBRARIES:
        path = next((folder / name for folder in _folders() if (folder / name).exists()), None)
        ctypes.CDLL(str(path or name), mode=ctypes.RTLD_GLOBAL)
    if str(OVERLAY) not in sys.path:
        sys.path.append(str(OVERLAY))


class _Process(Server):
    def __init__(self, name: str, arguments: Sequence[str], port: int) -> None:
        super().__init__(name, port)
        self._arguments = arguments

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [_program(self.what), *self._arguments, "--logtostderr"], {"LD_LIBRARY_PATH": libraries()}

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
            return True
        return False


class MooncakePool:
    """Master and store node, stopped and started together unless one is named."""

    def __init__(self, segment: str = "256 MB") -> None:
        rpc, self._admin, node = free_port(), free_port(), free_port()
        self.master = _Process(
            "mooncake_master",
            [f"--rpc_port={rpc}", "--rpc_address=127.0.0.1", f"--metrics_port={self._admin}"],
            rpc,
        )
        self.node = _Process(
            "mooncake_client",
            ["--host=127.0.0.1", f"--port={node}", f"--global_segment_size={segment}", "--protocol=tcp",
             f"--master_server_address=127.0.0.1:{rpc}", "--metadata_server=P2PHANDSHAKE"],
            node,
        )  # fmt: skip

    def remote(self, **fields: object) -> dict[str, object]:
        """The connector's configuration for it."""
        return {"type": "mooncake", "master": f"{self.master.host}:{self.master.port}"} | fields

    def start(self) -> Self:
        """Returns when the node's memory is part of the pool."""
        try:
            self.master.start()
            self.node.start()
            wait_until("the node's memory is in the pool", self._has_memory)
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """Both, the node first."""
        for each in (self.node, self.master):
            each.kill()

    def pause(self) -> None:
        """Both."""
        for each in (self.node, self.master):
            each.pause()

    def resume(self) -> None:
        """Both."""
        for each in (self.master, self.node):
            each.resume()

    def close(self) -> None:
        """End both and remove their files."""
        for each in (self.node, self.master):
            each.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has_memory(self) -> bool:
        segments = f"http://127.0.0.1:{self._admin}/get_all_segments"
        with contextlib.suppress(OSError), urllib.request.urlopen(segments, timeout=1) as answer:
            return bool(answer.read().strip())
        return False
