"""Two engines as processes of their own that meet in a store, for each kind of store: the second one never saw the prompt."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connector.tests.engine.pairs import ARGUMENTS, Answer, complete, metric, of_blocks
from connector.tests.engine.test_stores import STORES, Subject
from testkit.engine import ROOT
from testkit.engine_process import EngineProcess
from testkit.http_client import reset_tiers
from testkit.mooncake import libraries
from testkit.patience import STORE_TIMEOUTS
from testkit.servers import wait_until

BLOCKS = 8
OVERLAYS = {"mooncake": [ROOT / ".venvs/mooncake"]}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@contextlib.contextmanager
def two_engines(kind: str, store: Subject, folder: Path) -> Iterator[tuple[str, str]]:
    """Their addresses."""
    config = folder / "kvpool.yaml"
    content: dict[str, Any] = {
        "tiers": {"cpu": {"size": "128Mi"}}, "chunk_tokens": 32, "admission": "always",
        "remote": store.remote(timeouts=STORE_TIMEOUTS | {"connect_ms": 3000}),
    }  # fmt: skip
    config.write_text(json.dumps(content))
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"} | (
        {"LD_LIBRARY_PATH": libraries()} if kind == "mooncake" else {}
    )
    engines = [
        EngineProcess(
            name,
            folder,
            config=config,
            dtype="float32",
            arguments=ARGUMENTS,
            overlays=OVERLAYS.get(kind, []),
            variables=variables,
        )
        for name in ("first", "second")
    ]
    with contextlib.ExitStack() as stack:
        for engine in engines:
            stack.callback(engine.end)
            engine.start()
        for engine in engines:
            engine.serving()
        yield engines[0].url, engines[1].url


@pytest.mark.parametrize("kind", STORES)
def test_what_one_engine_computed_another_one_loads(kind: str, tmp_path: Path) -> None:
    """With the store, without it, and with it back and empty: one text, and no request fails."""
    store: Subject = STORES[kind]()
    try:
        store.start()
        with two_engines(kind, store, tmp_path) as (first, second):
            text = of_blocks(first, 1, BLOCKS)
            cold = complete(first, text)
            assert cold.cached == 0
            wait_until("the first engine wrote", lambda: written(first) == BLOCKS)
            hit = Answer(cold.text, cold.prompt, cold.prompt - 1)
            assert complete(second, text) == hit
            assert metric(second, "kvpool:loaded_chunks_total", 'tier="remote"') == BLOCKS

            store.kill()
            reset_tiers(second)
            assert complete(second, text) == cold
            assert complete(first, text) == hit  # from what it holds itself

            store.start()
            reset_tiers(second)
            wait_until(
                "the first engine wrote again", lambda: complete(first, text) == hit and written(first) > BLOCKS, 60
            )

            def found_again() -> bool:
                reset_tiers(second)
                answer = complete(second, text)
                assert answer.text == cold.text
                return answer == hit

            wait_until("the second engine loads again", found_again, 60)
    finally:
        store.close()


def written(url: str) -> float:
    """Chunks that an engine wrote to the store."""
    return metric(url, "kvpool:written_chunks_total", 'tier="remote"')
