"""LMCache's server and an engine on CPU, started from what the operator renders: the second request hits."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from kvpool_operator.api import parse_spec
from kvpool_operator.desired import Material, Pool
from kvpool_operator.desired.connectors import lmcache_mp
from testkit.engine import MODEL_NAME, ROOT, environment
from testkit.engine_process import EngineProcess
from testkit.http_client import Answer, ask, healthy, reset_own_cache
from testkit.ports import free_port
from testkit.servers import KeyValueServer, wait_until

PYTHON = ROOT / ".venvs/lmcache/bin/python"
PASSWORD = "quarterdeck"
pytestmark = [
    pytest.mark.slow,  # an environment of 7 GB, and an engine's start
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="LMCache's environment is not here: run tools/setup.sh lmcache"),
]


def _pool(store: KeyValueServer) -> Pool:
    external = {"host": store.host, "port": store.port, "auth": {"secretRef": {"name": "s"}}}
    spec = parse_spec(
        {
            "connector": {"type": "LMCacheMP"},
            "backend": {"type": "Redis", "external": external},
            "tiers": {"cpu": {"size": "1Gi"}},
        }
    )
    return Pool("demo", "team", "uid", spec, Material("", "1"))


@pytest.fixture(scope="module")
def store() -> Iterator[KeyValueServer]:
    with KeyValueServer("redis", password=PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def engine(store: KeyValueServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    folder, port, http_port = tmp_path_factory.mktemp("mp"), free_port(), free_port()
    pool = _pool(store)
    with ExitStack() as stack:
        _serve(
            stack,
            folder,
            lmcache_mp.server_arguments(pool, host="127.0.0.1", port=port, http_port=http_port),
            http_port,
        )
        transfer = json.dumps(lmcache_mp.transfer_to("tcp://127.0.0.1", port))
        arguments = ["--max-model-len", "2048", "--enforce-eager", "--enable-prompt-tokens-details"]
        started = EngineProcess(
            "engine",
            folder,
            config=None,
            dtype="float32",
            python=PYTHON,
            arguments=[*arguments, "--kv-transfer-config", transfer],
        )
        stack.callback(started.end)
        started.start()
        started.serving()
        yield started


def _serve(stack: ExitStack, folder: Path, arguments: list[str], http_port: int) -> None:
    """The server as its Pod runs it: the password by the environment."""
    variables = environment() | {"LMCACHE_RESP_PASSWORD": PASSWORD, "LMCACHE_TRACK_USAGE": "false"}
    log = stack.enter_context((folder / "server.log").open("wb"))
    process = subprocess.Popen(
        [str(PYTHON.with_name("lmcache")), *arguments], stdout=log, stderr=log, env=os.environ | variables
    )
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)

    def up() -> bool:
        assert process.poll() is None, f"LMCache's server ended: {folder}/server.log"
        return healthy(f"http://127.0.0.1:{http_port}", "/healthcheck")

    wait_until(f"LMCache's server answers ({folder}/server.log)", up, 180, poll_s=0.2)


def test_the_second_request_hits(engine: EngineProcess, store: KeyValueServer) -> None:
    text = "Document 1. " + "The keeper wrote about wind and tides. " * 60

    def answer() -> Answer:
        return ask(engine.url, MODEL_NAME, text, max_tokens=4)

    first = answer()
    assert first.cached_tokens == 0
    with redis.Redis(port=store.port, password=PASSWORD) as client:
        wait_until("LMCache's server wrote to the store", lambda: int(client.dbsize()) > 0)
    reset_own_cache(engine.url)
    again = answer()
    assert again.cached_tokens >= 256
    assert again.text == first.text
