"""A controller of another project as a process, with its log."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from testkit.patience import PATIENCE_S

from ..kubectl import eventually


class Controller:
    """Started and ended as often as a test likes; keeps its ports."""

    def __init__(self, work: Path, command: Sequence[str], health_port: int, environment: Mapping[str, str]) -> None:
        self._work, self._command = work, list(command)
        self._health_port = health_port
        self._environment = {**os.environ, **environment}
        self._runs = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def logs(self) -> list[Path]:
        """One for each start, in order."""
        return sorted(self._work.glob("run-*.log"))

    @property
    def log(self) -> str:
        """Of the present run."""
        return self.logs[-1].read_text()

    def start(self) -> None:
        """Returns when it says that it is ready."""
        with (self._work / f"run-{next(self._runs):03}.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

        def ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"it ended:\n{self.log[-5000:]}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._health_port}/readyz", timeout=2) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        eventually(ready, seconds=2 * PATIENCE_S, what=f"{self._command[0]} is ready; log in {self._work}")

    def end(self) -> None:
        """As Kubernetes ends it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5)
