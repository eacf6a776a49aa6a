"""The stage without Kubernetes: two engine processes and a Redis on loopback. No root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from e2e.demo.client import healthy
from e2e.demo.stage import ENGINE_ARGUMENTS, ENGINES, EngineName
from testkit.engine import CONNECTOR, ENGINE_PYTHON, MODEL_NAME, best_dtype, ensure_model, environment
from testkit.servers import KeyValueServer, free_port, wait_until

START_S = 300.0
KV_TRANSFER = {
    "kv_connector": "KVPoolConnector",
    "kv_connector_module_path": "kvpool_connector.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


class Processes:
    """Started on entry, ended on exit; logs are kept when something failed."""

    model = MODEL_NAME

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._folder = Path(tempfile.mkdtemp(prefix="kvpool-demo-"))
        self._store = KeyValueServer("redis", password=os.urandom(12).hex())
        self._engines: dict[EngineName, subprocess.Popen[bytes]] = {}
        self._ports: dict[EngineName, int] = {}

    def __enter__(self) -> Self:
        try:
            self._store.start()
            self._say(f"redis on port {self._store.port}; logs in {self._folder}")
            self._configure()
            ensure_model()
            for name in ENGINES:
                self._start(name)
            for name in ENGINES:
                self._serving(name)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._engines):
            self._end(name)
        self._store.close()

    def url(self, engine: EngineName) -> str:
        """Loopback."""
        return f"http://127.0.0.1:{self._ports[engine]}"

    def restart_a(self) -> None:
        """A new process on the same port."""
        self._end("A")
        self._start("A")
        self._serving("A")

    def parts(self) -> int:
        """All keys but the identity documents."""
        with redis.Redis(port=self._store.port, password=self._store.password) as client:
            return int(client.dbsize()) - sum(1 for _ in client.scan_iter("kvpool:identity:*", count=10_000))

    def kill_store(self) -> None:
        """SIGKILL."""
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

    def _start(self, name: EngineName) -> None:
        port = self._ports.setdefault(name, free_port())
        command = [
            str(ENGINE_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
            "--model", str(ensure_model()), "--served-model-name", MODEL_NAME, "--dtype", best_dtype(),
            "--prefix-caching-hash-algo", "sha256_cbor", "--kv-transfer-config", json.dumps(KV_TRANSFER), *ENGINE_ARGUMENTS,
        ]  # fmt: skip
        extra = {
            "PYTHONPATH": str(CONNECTOR),
            "KVPOOL_CONFIG_FILE": str(self._folder / "kvpool.yaml"),
            "VLLM_SERVER_DEV_MODE": "1",
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            self._engines[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | environment() | extra,
            )  # fmt: skip

    def _serving(self, name: EngineName) -> None:
        began = time.monotonic()

        def up() -> bool:
            if self._engines[name].poll() is not None:
                raise RuntimeError(f"engine {name} ended; its log: {self._folder}/{name}.log")
            return healthy(self.url(name))

        wait_until(f"engine {name} serves ({self._folder}/{name}.log)", up, START_S, poll_s=0.2)
        self._say(f"engine {name} serves after {time.monotonic() - began:.0f} s")

    def _end(self, name: EngineName) -> None:
        """The server and its children: they share a process group, which this program made."""
        process = self._engines.pop(name)
        for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            try:
                os.killpg(process.pid, number)
                process.wait(seconds)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait(1)
