"""The engines of the benchmark and the place where they run. All are started with the same dtype, block size and thread binding.

| name | is |
|---|---|
| none | vLLM alone |
| pool | vLLM with the connector: memory, disk, Redis |
| lmcache | vLLM with LMCache's multi-process connector, and its server; an environment of its own |
| reborn | ``pool`` in a new process: the same disk; a device memory too small for many documents |
| fresh | an engine that never saw a prompt: memory and the same Redis, no disk |
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from bench.serving.client import Metrics, get, metrics_of
from e2e.demo.stage import ENGINE_ARGUMENTS
from testkit.engine import MODEL_NAME, ROOT, environment
from testkit.engine_facts import facts_of
from testkit.engine_process import EngineProcess
from testkit.http_client import ask
from testkit.ports import free_port
from testkit.servers import KeyValueServer, wait_until

LMCACHE_PYTHON = ROOT / ".venvs/lmcache/bin/python"
LMCACHE_CHUNK_TOKENS = 256
"""Granularity of LMCache's hits: its default. The pool's engines tell theirs."""
SMALL_DEVICE_BLOCKS = 272
"""Of ``reborn``: a little more than the longest request that vLLM insists on (8192 tokens)."""
SETTLE_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class LmcacheServer:
    """LMCache's cache server. Started on entry, ended on exit."""

    def __init__(self, folder: Path) -> None:
        self.port, self._http = free_port(), free_port()
        self._log = folder / "lmcache-server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [
            str(LMCACHE_PYTHON.with_name("lmcache")), "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--http-port", str(self._http), "--prometheus-port", str(free_port()), "--l1-size-gb", "3",
            "--eviction-policy", "LRU", "--supported-transfer-mode", "engine_driven",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, process_group=0, env=os.environ | environment()
            )
        wait_until(f"LMCache's server answers ({self._log})", self._answers, 120, poll_s=0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(self._process.pid, number)
            try:
                self._process.wait(10)
                return
            except subprocess.TimeoutExpired:
                continue

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"LMCache's server ended; its log: {self._log}")
        try:
            get(f"http://127.0.0.1:{self._http}", "/healthcheck")
        except (OSError, RuntimeError):
            return False
        return True


class Stage:
    """Redis, and engines by name. Ended on exit; logs stay in ``folder``."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kvpool-bench-"))
        self._store, self._lmcache = KeyValueServer("redis"), LmcacheServer(self.folder)
        self._engines: dict[str, EngineProcess] = {}
        self._started = 0

    def __enter__(self) -> Self:
        self._store.start()
        self._parts = redis.Redis(port=self._store.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(*self._engines)
        self._store.close()
        shutil.rmtree(self.folder / "disk", ignore_errors=True)  # gigabytes

    def start(self, *names: str) -> None:
        """Together; returns when all serve and have computed something, so that no request pays for a first use of the code. What
        they compute is new to every tier: the first hit of a process is one of those that are measured."""
        for name in names:
            self._engines[name] = self._make(name)  # first: what is known here is ended, whatever fails
            if name == "lmcache":
                self._lmcache.__enter__()
            self._engines[name].start()
        for name in names:
            self._engines[name].serving()
        for name in names:
            self._started += 1
            ask(self.url(name), MODEL_NAME, f"Start {self._started}. " + "Say hello. " * 200, max_tokens=4)
        self.settle()

    def end(self, *names: str) -> None:
        """For good. A later start makes a new process."""
        for name in names:
            self._engines.pop(name).end()
            if name == "lmcache":
                self._lmcache.__exit__(None, None, None)

    def url(self, name: str) -> str:
        """Loopback."""
        return self._engines[name].url

    def chunk_tokens(self, name: str) -> int:
        """Return the granularity of an engine's hits. vLLM alone has none: 1."""
        if name == "none":
            return 1
        return LMCACHE_CHUNK_TOKENS if name == "lmcache" else facts_of(self.url(name)).chunk_tokens

    def metrics(self, name: str) -> Metrics:
        """An engine's counters now."""
        return metrics_of(self.url(name))

    def parts(self) -> int:
        """Keys in Redis."""
        return int(self._parts.dbsize())

    def settle(self) -> None:
        """Wait until no engine or server works any more: stores of one answer are not the next one's cost.

        Raises:
            TimeoutError: they do not come to rest.
        """

        def at_rest() -> bool:
            before = cpu_seconds(os.getpid())
            time.sleep(0.4)
            return cpu_seconds(os.getpid()) - before <= 0.06

        wait_until("engines and servers come to rest", at_rest, SETTLE_S)

    def _make(self, name: str) -> EngineProcess:
        if name == "none":
            return EngineProcess(name, self.folder, config=None, arguments=ENGINE_ARGUMENTS)
        if name == "lmcache":
            extra = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": self._lmcache.port}
            transfer = {
                "kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra,
                "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
            }  # fmt: skip
            arguments = [*ENGINE_ARGUMENTS, "--kv-transfer-config", json.dumps(transfer)]
            return EngineProcess(name, self.folder, config=None, arguments=arguments, python=LMCACHE_PYTHON)
        tiers: dict[str, object] = {"cpu": {"size": "2Gi"}}
        if name in ("pool", "reborn"):
            tiers["disk"] = {"path": str(self.folder / "disk"), "size": "4Gi"}
        config = self.folder / f"{name}.yaml"
        remote = {"type": "redis", "host": self._store.host, "port": self._store.port}
        config.write_text(json.dumps({"tiers": tiers, "remote": remote}))
        small = ["--num-gpu-blocks-override", str(SMALL_DEVICE_BLOCKS)] if name == "reborn" else []
        return EngineProcess(name, self.folder, config=config, arguments=[*ENGINE_ARGUMENTS, *small])


def cpu_seconds(root: int) -> float:
    """User and system time of all processes below one, those that have ended not counted. Source: proc_pid_stat(5)."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(folder.name)], used[int(folder.name)] = int(fields[1]), int(fields[11]) + int(fields[12])

    def below(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == root:
                return True
        return False

    return sum(ticks for process, ticks in used.items() if below(process)) / _TICKS_PER_S
