"""The stage without Kubernetes: two engine processes and a Redis on loopback. No root."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from e2e.demo.stage import ENGINE_ARGUMENTS, ENGINES, EngineName
from testkit.engine import MODEL_NAME, ensure_model
from testkit.engine_process import EngineProcess
from testkit.host import Dtype, chosen_dtype
from testkit.servers import KeyValueServer


class Processes:
    """Started on entry, ended on exit; logs are kept when something failed."""

    model = MODEL_NAME

    def __init__(self, say: Callable[[str], None], dtype: Dtype | None = None) -> None:
        """Args:
        dtype: number type of both engines; None: the one that this host is run in.
        """
        self._say = say
        self.dtype = dtype or chosen_dtype()
        self._folder = Path(tempfile.mkdtemp(prefix="kvpool-demo-"))
        self._store = KeyValueServer("redis", password=os.urandom(12).hex())
        config = self._folder / "kvpool.yaml"
        self._engines: dict[EngineName, EngineProcess] = {
            name: EngineProcess(name, self._folder, config=config, dtype=self.dtype, arguments=ENGINE_ARGUMENTS)
            for name in ENGINES
        }

    def __enter__(self) -> Self:
        try:
            self._store.start()
            self._say(f"redis on port {self._store.port}; logs in {self._folder}")
            self._configure()
            ensure_model()
            for engine in self._engines.values():
                engine.start()
            for name in ENGINES:
                self._serving(name)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self._engines.values():
            engine.end()
        self._store.close()

    def url(self, engine: EngineName) -> str:
        """Loopback."""
        return self._engines[engine].url

    def restart_a(self) -> None:
        """A new process on the same port."""
        self._engines["A"].end()
        self._engines["A"].start()
        self._serving("A")

    def parts(self) -> int:
        """All keys but the identity documents."""
        with redis.Redis(port=self._store.port, password=self._store.password) as client:
            return int(client.dbsize()) - sum(1 for _ in client.scan_iter("kvpool:identity:*", count=10_000))

    def kill_store(self) -> None:
        """Send SIGKILL."""
        self._store.kill()

    def return_store(self) -> None:
        """On the same port."""
        self._store.start()

    def look_further(self) -> str:
        """Where the logs are."""
        return f"logs of both engines: {self._folder}/A.log and B.log; lines of the connector contain 'kvpool'"

    def _configure(self) -> None:
        secret = self._folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(self._store.password or "")
        remote = {"type": "redis", "host": "127.0.0.1", "port": self._store.port, "password_file": str(secret)}
        config = {"version": 1, "tiers": {"cpu": {"size": "1Gi"}}, "remote": remote}
        (self._folder / "kvpool.yaml").write_text(json.dumps(config))

    def _serving(self, name: EngineName) -> None:
        began = time.monotonic()
        self._engines[name].serving()
        self._say(f"engine {name} serves after {time.monotonic() - began:.0f} s")
