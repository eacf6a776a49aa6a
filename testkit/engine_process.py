"""vLLM's OpenAI-compatible server as a process of this machine, with or without the connector."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from testkit.engine import CONNECTOR, ENGINE_PYTHON, MODEL_NAME, ensure_model, environment, plug_in
from testkit.host import Dtype, chosen_dtype
from testkit.http_client import healthy
from testkit.ports import free_port
from testkit.servers import wait_until

START_S = 600.0
KV_TRANSFER: dict[str, Any] = {
    "kv_connector": "KVPoolConnector",
    "kv_connector_module_path": "kvpool_connector.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


class EngineProcess:
    """Started by :meth:`start`, as often as it is ended; keeps its port."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        config: Path | None,
        dtype: Dtype | None = None,
        arguments: Sequence[str] = (),
        python: Path = ENGINE_PYTHON,
        transfer: Mapping[str, Any] | None = KV_TRANSFER,
        overlays: Sequence[Path] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        folder: for the log.
        config: the connector's configuration file; None: vLLM alone.
        dtype: number type; None: the one that this host is run in.
        arguments: further ones for vLLM.
        python: of the environment with vLLM in it.
        transfer: vLLM's kv_transfer_config, if there is a configuration file; None: the environment
            alone switches kvpool on.
        overlays: folders with further packages.
        variables: further ones of the environment.
        """
        self._python, self._transfer, self._overlays, self._variables = python, transfer, overlays, variables or {}
        self._dtype = dtype or chosen_dtype()
        self.name, self.log, self._config = name, folder / f"{name}.log", config
        self.port = free_port()
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Loopback."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns at once; see :meth:`serving`.

        A process group and not a session of its own: Linux schedules sessions as groups (sched(7), autogroup), and 6.18 was
        seen to run nothing of one engine's worker for ten seconds while that of another one, pinned to the same core, waited
        in vLLM's loop of ``sched_yield``. Within one session that loop lets everybody run.
        """
        command = [
            str(self._python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(self.port),
            "--model", str(ensure_model()), "--served-model-name", MODEL_NAME, "--dtype", self._dtype,
            "--prefix-caching-hash-algo", "sha256_cbor", *self._arguments,
        ]  # fmt: skip
        extra = {"VLLM_SERVER_DEV_MODE": "1"}
        if self._config is not None:
            if self._transfer is not None:
                command += ["--kv-transfer-config", json.dumps(dict(self._transfer))]
            path = os.pathsep.join(map(str, (CONNECTOR, plug_in(self.log.parent), *self._overlays)))
            extra |= {"PYTHONPATH": path, "KVPOOL_CONFIG_FILE": str(self._config)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, process_group=0,
                env={**os.environ, **environment(), **extra, **self._variables},
            )  # fmt: skip

    def serving(self) -> None:
        """Wait until it answers.

        Raises:
            RuntimeError: it ended; names the log.
            TimeoutError: it does neither.
        """

        def up() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"engine {self.name} ended; its log: {self.log}")
            return healthy(self.url)

        wait_until(f"engine {self.name} serves ({self.log})", up, START_S, poll_s=0.2)

    def worker_threads(self) -> list[set[int]]:
        """The cores on which each thread of the worker process may run."""
        assert self._process is not None
        (worker,) = (
            status.parent for status in Path("/proc").glob("[0-9]*/stat")
            if (fields := status.read_text().rpartition(")"))[0].endswith("(VLLM::Worker")
            and int(fields[2].split()[2]) == self._process.pid
        )  # fmt: skip
        return [os.sched_getaffinity(int(task.name)) for task in (worker / "task").iterdir()]

    def end(self) -> None:
        """The server and its children: they share a process group, which :meth:`start` made."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            try:
                os.killpg(process.pid, number)
                process.wait(seconds)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait(1)
