"""Ray Serve's application for language models, answered through the cache: Ray's processes, vLLM's CPU build, Redis."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from testkit import engine
from testkit.ports import free_port
from testkit.servers import KeyValueServer, wait_until

PYTHON = engine.ROOT / ".venvs/ray/bin/python"
EXAMPLE = engine.ROOT / "examples/ray"
MODEL = "smollm2"
PROMPT = "You answer questions about this text.\n" + "The lighthouse keeper wrote down every ship that passed. " * 40
START_S = 600.0
STARTS = 3

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON.exists(), reason="Ray is not installed: run tools/setup.sh ray"),
]


class Ray:
    """A Ray cluster of one node, and Serve's application on it. Its servers ask for a token: some listen on all addresses."""

    def __init__(self, folder: Path, config: Path) -> None:
        self._folder = folder
        # Below /tmp: Ray's sockets have long names, and a socket's path ends at 107 bytes.
        self._temporary = tempfile.mkdtemp(prefix="kr-", dir="/tmp")
        self._port, self.http = free_port(), free_port()
        self._cluster: subprocess.Popen[bytes] | None = None
        self._application: subprocess.Popen[bytes] | None = None
        self._environment = {
            **os.environ,
            **engine.environment(),
            "PYTHONPATH": str(engine.CONNECTOR),
            "KVPOOL_CONFIG_FILE": str(config),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"127.0.0.1:{self._port}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # it ends workers when other programs fill the machine's memory
        }
        self._application_file = folder / "serve.yaml"
        self._application_file.write_text(yaml.safe_dump(self._application_config()))

    def _application_config(self) -> dict[str, Any]:
        """The example with the model from the cache and a port of its own, in float32: the test compares a text computed whole
        with one behind a hit (docs/texts.md)."""
        config: dict[str, Any] = yaml.safe_load((EXAMPLE / "serve.yaml").read_text())
        (model,) = config["applications"][0]["args"]["llm_configs"]
        model["model_loading_config"]["model_source"] = str(engine.ensure_model())
        model["engine_kwargs"]["dtype"] = "float32"
        return {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": self.http}, **config}

    def start(self) -> None:
        """The node. Ray gives its agents 30 s to start and itself 30 s more, both fixed; a busy machine may need a second try."""
        for _ in range(STARTS):
            if self._started():
                return
            self._end(self._cluster, signal.SIGTERM)
        raise AssertionError(f"Ray did not start: {(self._folder / 'cluster.log').read_text()[-3000:]}")

    def _started(self) -> bool:
        names = (
            "metrics-export",
            "dashboard-agent-listen",
            "dashboard-agent-grpc",
            "runtime-env-agent",
            "ray-client-server",
        )
        words = [word for name in (*names, "dashboard") for word in (f"--{name}-port", str(free_port()))]
        cluster = self._cluster = self._run(
            "cluster", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "6", "--num-gpus", "0",
            "--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1", "--port", str(self._port), *words,
            "--object-store-memory", str(100 << 20), "--temp-dir", self._temporary, "--disable-usage-stats",
        )  # fmt: skip
        log = self._folder / "cluster.log"
        wait_until(
            f"Ray starts or gives up ({log})",
            lambda: cluster.poll() is not None or "Ray runtime started" in log.read_text(),
            START_S,
            poll_s=0.5,
        )
        return cluster.poll() is None

    def serve(self) -> None:
        """The application, until it answers."""
        self._application = self._run("serve", "ray.serve.scripts", "run", str(self._application_file))

        def answers() -> bool:
            """A completion: the list of models is there before the engine is."""
            assert self._application is not None
            assert self._application.poll() is None, (self._folder / "serve.log").read_text()[-3000:]
            try:
                return bool(self.complete("Ready?"))
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        wait_until(f"the application answers ({self._folder}/serve.log)", answers, START_S, poll_s=1)

    def complete(self, prompt: str) -> str:
        """Greedy text."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 16, "temperature": 0}
        return str(json.loads(self._ask("/v1/completions", body))["choices"][0]["text"])

    def end_application(self) -> None:
        """As by Ctrl-C: Serve takes its replicas along."""
        self._end(self._application, signal.SIGINT)
        self._application = None

    def end(self) -> None:
        """Everything; `ray start --block` takes the node's processes along."""
        self.end_application()
        self._end(self._cluster, signal.SIGTERM)

    def _run(self, name: str, module: str, *words: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [str(PYTHON), "-m", module, *words],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
        """Ask it, then end what is left of its group: a node that did not start leaves servers behind."""
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            process.send_signal(number)
            process.wait(120)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            text: bytes = answer.read()
        return text


@pytest.fixture
def store() -> Iterator[KeyValueServer]:
    with KeyValueServer("redis") as server:
        yield server


@pytest.fixture
def ray(tmp_path: Path, store: KeyValueServer) -> Iterator[Ray]:
    config = yaml.safe_load((EXAMPLE / "kvpool.yaml").read_text())
    config["remote"]["port"] = store.port
    config["admission"] = "always"  # a small model on a slow machine: computing may be quicker than loading
    (tmp_path / "kvpool.yaml").write_text(yaml.safe_dump(config))
    # A shell's background job ignores Ctrl-C, and so would all that is started from it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running = Ray(tmp_path, tmp_path / "kvpool.yaml")
    try:
        running.start()
        yield running
    finally:
        running.end()


def test_a_second_replica_reads_what_the_first_one_computed(ray: Ray, store: KeyValueServer) -> None:
    with redis.Redis(port=store.port) as client:

        def parts() -> int:
            return int(client.dbsize()) - sum(1 for _ in client.scan_iter("kvpool:identity:*", count=10_000))

        ray.serve()
        text = ray.complete(PROMPT)
        wait_until("blocks are in the store", lambda: parts() > 0, 60)
        ray.end_application()

        ray.serve()
        stored, hits = parts(), int(client.info("stats")["keyspace_hits"])
        assert ray.complete(PROMPT) == text
        loaded = int(client.info("stats")["keyspace_hits"]) - hits
        print(f"{stored} parts in the store; reads of the second replica that found something: {loaded}")
        assert loaded >= 2 * stored  # each part: once by the lookup, once by the load
