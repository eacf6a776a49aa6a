"""Several ranks, each a process with an arena, a slab and parts of its own: KV memory byte for byte on every one.

Every engine here starts its ranks afresh, so what it loads from Redis or disk was left by processes that are gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from vllm import TokensPrompt

from connector.tests.engine import models
from connector.tests.engine.harness import empty, remote, tokens
from connector.tests.engine.ranks import Ranks, Snapshots, ranks_running
from testkit.servers import KeyValueServer

pytestmark = pytest.mark.timeout(300)

CPU_BYTES = 32 << 20
TP_2 = {"tensor_parallel_size": 2}


def settings(store: KeyValueServer, folder: Path) -> dict[str, Any]:
    """All tiers, and nothing in them."""
    empty(store)
    return {
        "tiers": {"cpu": {"size": CPU_BYTES}, "disk": {"path": str(folder / "disk"), "size": "64Mi"}},
        "remote": remote(store, folder), "admission": "always",
    }  # fmt: skip


def test_two_ranks(store: KeyValueServer, tmp_path: Path) -> None:
    """Cold, from memory, from Redis after the tiers were emptied. The budget is the engine's, not the rank's."""
    model, prompt = models.save(models.llama, tmp_path / "model"), tokens(1, 700, models.VOCABULARY)
    with ranks_running(model, settings(store, tmp_path), **TP_2) as engine:
        text, cached = engine.generate(prompt)
        assert cached == 0
        engine.settle()
        computed = engine.snapshots("store")
        assert [len(each) for each in computed] == [20, 20]
        assert computed[0] != computed[1]
        assert sum(engine.llm.collective_rpc("probe_arena_bytes")) <= CPU_BYTES
        with redis.Redis(port=store.port, password=store.password) as client:
            assert len(client.keys("kvpool:1:*")) == 2 * 5, "a part for every rank"
        engine.forget()
        assert_loaded(engine, prompt, computed, text, {"from_disk": 0, "from_remote": 0})
        engine.forget(tiers=True)
        assert_loaded(engine, prompt, computed, text, {"from_disk": 0, "from_remote": 5})


@pytest.mark.slow
def test_two_ranks_in_fresh_processes(store: KeyValueServer, tmp_path: Path) -> None:
    """What processes that are gone left in Redis, and on disk."""
    model, prompt = models.save(models.llama, tmp_path / "model"), tokens(1, 700, models.VOCABULARY)
    kvpool = settings(store, tmp_path)
    with ranks_running(model, kvpool, **TP_2) as engine:
        text, _ = engine.generate(prompt)
        engine.settle()
        computed = engine.snapshots("store")
    with ranks_running(model, kvpool | {"tiers": {"cpu": {"size": CPU_BYTES}}}, **TP_2) as engine:
        assert_loaded(engine, prompt, computed, text, {"from_disk": 0, "from_remote": 5})
    empty(store)
    with ranks_running(model, kvpool, **TP_2) as engine:
        assert_loaded(engine, prompt, computed, text, {"from_disk": 5, "from_remote": 0})


def assert_loaded(
    engine: Ranks, prompt: TokensPrompt, computed: Snapshots, text: list[int], expected: dict[str, int]
) -> None:
    """Every rank has what it computed, from the tier."""
    engine.llm.collective_rpc("probe_overwrite")
    again, cached = engine.generate(prompt)
    assert cached == 640
    assert engine.llm.collective_rpc("probe_sources") == [expected] * 2
    assert engine.snapshots("load") == computed
    assert again == text
    engine.settle()
