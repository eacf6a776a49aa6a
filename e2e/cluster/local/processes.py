"""Servers that outlive the command that started them, each known by an identity that no other process can have.

A record `<name>.pid` holds the process's line of /proc/PID/stat and the boot id of the kernel: after a reboot, or
when the pid was given to another process, the start time or the boot id differs and the record counts for nothing.
The record is written by the new process itself before it becomes the server, so a server without a record
cannot exist, whenever the starting command is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.progress import ClusterError, last_lines, wait_for

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RECORD_ITSELF = f'cat /proc/$$/stat {BOOT_ID} >"$0.new" && mv "$0.new" "$0" && exec "$@"'


@dataclass(frozen=True)
class Identity:
    """A process: its pid, its start in clock ticks since boot, and the boot."""

    pid: int
    started: int
    boot: str


def parse_stat(line: str) -> tuple[int, str, int]:
    """Pid, state and start time of a line of /proc/PID/stat (the name in it may hold spaces and brackets)."""
    front, _, rest = line.rpartition(")")
    words = rest.split()
    return int(front.split(" ", 1)[0]), words[0], int(words[19])


def read_record(record: Path) -> Identity | None:
    """The identity in a record; None when there is none or it cannot be read."""
    try:
        stat, boot = record.read_text().splitlines()[:2]
        pid, _, started = parse_stat(stat)
    except (OSError, ValueError, IndexError):
        return None
    return Identity(pid, started, boot)


def is_alive(identity: Identity | None) -> bool:
    """True when this very process runs; a zombie does not."""
    if identity is None:
        return False
    try:
        if BOOT_ID.read_text().strip() != identity.boot:
            return False
        _, state, started = parse_stat(Path(f"/proc/{identity.pid}/stat").read_text())
    except (OSError, ValueError, IndexError):
        return False
    return started == identity.started and state not in "ZX"


class Processes:
    """The servers of one cluster: records in `run`, logs in `log`."""

    def __init__(self, run: Path, log: Path) -> None:
        self._run = run
        self._log = log

    def identity(self, name: str) -> Identity | None:
        """The running server of this name."""
        identity = read_record(self._record(name))
        return identity if is_alive(identity) else None

    def alive(self, name: str) -> bool:
        """True when the server of this name runs."""
        return self.identity(name) is not None

    def start(self, name: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> bool:
        """Start a server unless it runs; True when it was started."""
        if self.alive(name):
            return False
        record = self._record(name)
        record.unlink(missing_ok=True)
        words = ["setsid", "--fork", "sh", "-c", _RECORD_ITSELF, str(record), *(str(word) for word in argv)]
        with self.log(name).open("ab") as log:
            subprocess.run(
                words, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
            )
        wait_for(10.0, f"the start of {name}", record.exists)
        return True

    def stop(self, name: str, grace: float = 10.0) -> bool:
        """End a server: SIGTERM, and SIGKILL after `grace` seconds.  True when it ran."""
        identity = self.identity(name)
        if identity:
            end(identity, grace)
        self._record(name).unlink(missing_ok=True)
        return identity is not None

    def log(self, name: str) -> Path:
        """The log of a server, kept over restarts."""
        return self._log / f"{name}.log"

    def dead(self, names: Sequence[str]) -> str | None:
        """The first of these servers that has ended, with the end of its log; None while all run."""
        for name in names:
            if not self.alive(name):
                return f"{name} ended; the end of {self.log(name)}:\n{last_lines(self.log(name))}"
        return None

    def check(self, names: Sequence[str]) -> None:
        """Raise `ClusterError` when one of these servers has ended."""
        reason = self.dead(names)
        if reason:
            raise ClusterError(reason)

    def _record(self, name: str) -> Path:
        return self._run / f"{name}.pid"


def end(identity: Identity, grace: float) -> None:
    """End exactly this process; returns when it is gone."""
    deadline = time.monotonic() + grace
    _signal(identity, signal.SIGTERM)
    while is_alive(identity):
        if time.monotonic() > deadline:
            _signal(identity, signal.SIGKILL)
        time.sleep(0.02)


def _signal(identity: Identity, number: signal.Signals) -> None:
    """Signal the process; the descriptor makes sure that it is not another one with its pid."""
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(identity):
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
