"""A prefill engine and a decode engine as processes, with vLLM's own router in front of them and Redis beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from kvpool_connector.vllm.handover import PREFILLED
from testkit.engine import ENGINE_PYTHON, MODEL_NAME, ROOT
from testkit.engine_process import KV_TRANSFER, EngineProcess
from testkit.http_client import healthy
from testkit.patience import STORE_TIMEOUTS
from testkit.ports import free_port
from testkit.servers import KeyValueServer, wait_until

NIXL, ROUTER = ROOT / ".venvs/nixl", ROOT / ".venvs/router"
BLOCK = 32
HANDOVER_MS = 10_000
ARGUMENTS = ["--max-model-len", "2048", "--block-size", str(BLOCK), "--enforce-eager", "--enable-prompt-tokens-details"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One completion."""

    text: str
    prompt: int
    """Tokens of the prompt, ..."""
    cached: int
    """... and how many of them the answering engine did not compute."""


def complete(url: str, prompt: str, tokens: int = 4, params: dict[str, Any] | None = None) -> Answer:
    """Greedy. The router's answers say nothing of cached tokens."""
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    answer = _post(f"{url}/v1/completions", body | ({"kv_transfer_params": params} if params else {}))
    cached = (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(answer["choices"][0]["text"], answer["usage"]["prompt_tokens"], cached)


def of_blocks(url: str, number: int, blocks: int) -> str:
    """A text whose tokens fill so many blocks and one token more: the one that vLLM always computes."""
    wanted = blocks * BLOCK + 1
    text = f"Document {number}:"

    def count(candidate: str) -> int:
        return int(_post(f"{url}/tokenize", {"model": MODEL_NAME, "prompt": candidate})["count"])

    text += " tide" * (wanted - count(text))
    assert count(text) == wanted, "one token for each word"
    return text


def announced(url: str, prompt: str, tokens: int) -> Answer:
    """As a router asks a decode engine after a prefill engine offered so many tokens."""
    return complete(url, prompt, params={PREFILLED: tokens})


def computed(url: str) -> float:
    """Prompt tokens that an engine computed so far."""
    return metric(url, "vllm:prompt_tokens_by_source_total", 'source="local_compute"')


def metric(url: str, name: str, label: str = "") -> float:
    """The sum over the series of an engine's metric whose line has the label."""
    lines = _call("GET", f"{url}/metrics").decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and label in line)


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_call("POST", url, json.dumps(body)))
    return found


def _call(method: str, url: str, body: str | None = None) -> bytes:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.netloc, timeout=240)
    try:
        connection.request(method, where.path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == http.HTTPStatus.OK, f"{url}: {answer.status} {content[:500]!r}"
        return content
    finally:
        connection.close()


@dataclasses.dataclass
class Pair:
    """Two engines, the router before them, the store between them."""

    prefill: EngineProcess
    decode: EngineProcess
    router: str
    store: redis.Redis

    def parts(self) -> int:
        """Keys in the store."""
        return int(self.store.dbsize())


def composed(role: str) -> dict[str, Any]:
    """The pool first, then NIXL, as children of vLLM's MultiConnector."""
    nixl = {"kv_connector": "NixlConnector", "kv_role": role, "kv_buffer_device": "cpu"}
    children = [KV_TRANSFER, nixl | {"kv_connector_extra_config": {"backends": ["UCX"]}}]
    return {
        "kv_connector": "MultiConnector", "kv_role": role, "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": children},
    }  # fmt: skip


@contextlib.contextmanager
def pair(folder: Path, *, nixl: bool) -> Iterator[Pair]:
    """Args:
    nixl: the decode engine fetches from the prefill engine, and each has a memory tier; otherwise both meet in the store.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(KeyValueServer("redis"))
        config = folder / "kvpool.yaml"
        content: dict[str, Any] = {"tiers": {"cpu": {"size": "256Mi"}}, "chunk_tokens": BLOCK, "admission": "always"}
        if not nixl:
            timeouts = STORE_TIMEOUTS | {"handover_ms": HANDOVER_MS}
            content["remote"] = {"type": "redis", "host": server.host, "port": server.port, "timeouts": timeouts}
        config.write_text(json.dumps(content))
        prefill, decode = (_engine(folder, config, role, nixl=nixl) for role in ("kv_producer", "kv_consumer"))
        for engine in (prefill, decode):
            stack.callback(engine.end)
            engine.start()
        for engine in (prefill, decode):
            engine.serving()
        router = stack.enter_context(_router(folder, prefill.url, decode.url))
        yield Pair(prefill, decode, router, stack.enter_context(redis.Redis(port=server.port)))


def _engine(folder: Path, config: Path, role: str, *, nixl: bool) -> EngineProcess:
    cores = sorted(os.sched_getaffinity(0))
    # NIXL's worker moves the main thread of a CPU engine to the last core (base_worker.py); the threads that compute need
    # others, or each of their barriers costs a time slice.
    usual = {
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }  # this folder's tests have it otherwise
    variables = {
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_CPU_OMP_THREADS_BIND": str(cores[0]),
    }
    return EngineProcess(
        role, folder, config=config, dtype="float32", arguments=ARGUMENTS, overlays=[NIXL] if nixl else [],
        transfer=composed(role) if nixl else KV_TRANSFER | {"kv_role": role}, variables=usual | (variables if nixl else {}),
    )  # fmt: skip


@contextlib.contextmanager
def _router(folder: Path, prefill: str, decode: str) -> Iterator[str]:
    port = free_port()
    command = [
        str(ENGINE_PYTHON), "-m", "vllm_router.launch_router", "--host", "127.0.0.1", "--port", str(port),
        "--vllm-pd-disaggregation", "--prefill", prefill, "--decode", decode, "--policy", "round_robin",
        "--prometheus-port", str(free_port()),
    ]  # fmt: skip
    with (folder / "router.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROUTER)}, cwd=folder
        )

    def up() -> bool:
        assert process.poll() is None, f"the router ended: {folder}/router.log"
        return healthy(f"http://127.0.0.1:{port}")

    try:
        wait_until(f"the router answers ({folder}/router.log)", up, 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
