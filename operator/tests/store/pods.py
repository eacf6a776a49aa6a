"""Processes in place of Pods: the files of a pool's ConfigMaps, with this machine's paths, addresses and programs.

Each Pod has a loopback address of its own, so that all listen on the same port as in a cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from kvpool_operator.api.settings import Probes
from kvpool_operator.observe.dial import Dialer
from testkit.patience import PATIENCE_S
from testkit.ports import free_port
from testkit.servers import CACHE, server_command, wait_until


def anywhere() -> Dialer:
    """The operator's dialer, without addresses that it refuses: all Pods are on loopback here."""
    return Dialer(Probes(refused_networks=(), refuse_api_server=False), _no_hosts)


async def _no_hosts() -> tuple[str, ...]:
    return ()


def program_wrappers(folder: Path) -> None:
    """redis-server, redis-cli, valkey-server and valkey-cli as programs on a PATH; Valkey's wheel has no client of its own.

    Raises:
        FileNotFoundError: with the command that gets what is missing.
    """
    (server,), environment = server_command("redis")
    client = shutil.which("redis-cli") or str(CACHE / "redis/usr/bin/redis-cli")
    (valkey,), _ = server_command("valkey")
    library = environment.get("LD_LIBRARY_PATH", "")
    for name, program in (
        ("redis-server", server), ("redis-cli", client), ("valkey-server", valkey), ("valkey-cli", client),
    ):  # fmt: skip
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={library} exec {program} "$@"\n')
        wrapper.chmod(0o755)


def localized(text: str, names: Mapping[str, str], ports: Mapping[int, int]) -> str:
    """The text with names and whole port numbers replaced, in one pass: what was put in is not replaced again."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = "|".join([*map(re.escape, longest_first), r"\d+"])

    def other(found: re.Match[str]) -> str:
        word = found[0]
        return names[word] if word in names else str(ports.get(int(word), word))

    return re.sub(pattern, other, text)


def fresh_ports(*numbers: int) -> dict[int, int]:
    """A free port for each."""
    return {number: free_port() for number in numbers}


class PodProcess:
    """One container. Its /tmp begins empty, as a new Pod's."""

    def __init__(self, name: str, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.name, self._command, self._folder = name, command, folder
        self.environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def log(self) -> str:
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self._folder.parent.glob(f"{self.name}.*.log"))
        )

    def start(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        with (self._folder.parent / f"{self.name}.{self._starts}.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._starts += 1

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def exec(self, command: list[str], **environment: str) -> None:
        """Run another program where this one runs, as a probe or a hook does."""
        subprocess.run(command, env={**self.environment, **environment}, check=True, timeout=90)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def pids(self) -> set[int]:
        """Of all of its processes."""
        pids = (int(place.name) for place in Path("/proc").glob("[0-9]*"))
        return {pid for pid in pids if _group_of(pid) == self.pid}

    def pause(self) -> None:
        """It stands still, as on a machine that has no core for it."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """As when the node is lost."""
        self._end(os.killpg, signal.SIGKILL)

    def stop(self) -> None:
        """The first process is told, as by the kubelet."""
        self._end(os.kill, signal.SIGTERM)

    def _end(self, tell: Callable[[int, int], None], number: int) -> None:
        if self._process is None:
            return
        if self.runs:
            tell(self._process.pid, number)
        try:
            self._process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=PATIENCE_S)
        self._process = None


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


__all__ = ["PodProcess", "fresh_ports", "localized", "program_wrappers", "wait_until"]
