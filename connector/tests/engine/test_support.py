"""What is refused, and what a refusal does to an engine: stop it with the reason, or let it run without the cache."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from connector.tests.engine import models
from connector.tests.engine.harness import TINY, llm_with, running, tokens
from kvpool_connector.config import ConfigError
from kvpool_connector.vllm.half import DisabledHalf
from kvpool_connector.vllm.support import Facts, check, faults
from kvpool_connector.vllm.worker import KVPoolWorker
from kvpool_connector.worker.null import NullMover
from testkit import host

pytestmark = pytest.mark.timeout(300)

PROMPT = tokens(1, 300, models.VOCABULARY)
CPU = {"cpu": {"size": "64Mi"}}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kv_specs": frozenset({"FullAttentionSpec", "MambaSpec"})}, "MambaSpec: recurrent state"),
    ({"kv_specs": frozenset({"ChunkedLocalAttentionSpec"})}, "ChunkedLocalAttentionSpec"),
    ({"mixed_layers": True}, "different shapes"),
    ({"uncached_groups": 1}, "out of prefix caching"),
    ({"non_causal": True}, "not causal"),
    ({"mla": True, "tensor_parallel": 2}, "MLA with --tensor-parallel-size"),
    ({"mla": True, "continues_prefixes": False}, "MLA where vLLM has chunked prefill"),
    ({"pipeline_parallel": 2}, "--pipeline-parallel-size 2"),
    ({"prefill_context_parallel": 2}, "--prefill-context-parallel-size 2"),
    ({"decode_context_parallel": 2}, "--decode-context-parallel-size 2"),
    ({"data_parallel": 2}, "--data-parallel-size with a model of experts 2"),
    ({"speculative": "eagle"}, "speculative decoding by 'eagle'"),
    ({"runner": "pooling"}, "--runner pooling"),
    ({"sleep_mode": True}, "--enable-sleep-mode"),
    ({"weight_transfer": True}, "--weight-transfer-config"),
    ({"sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
    ({"per_token_head_scales": True}, "--kv-cache-dtype"),
    ({"calculated_scales": True}, "--calculate-kv-scales"),
    ({"canonical_layout": True}, "canonical_layout"),
]


@pytest.mark.parametrize(("changes", "names"), REFUSED)
def test_refused(changes: dict[str, Any], names: str) -> None:
    """One message: what it is, and how to run without the cache."""
    with pytest.raises(ConfigError) as caught:
        check(Facts(**changes))
    assert names in str(caught.value)
    assert "remove --kv-transfer-config, or set on_failure: continue" in str(caught.value)


def test_every_fault_is_named_at_once() -> None:
    """A user mends them in one go."""
    assert len(list(faults(Facts(sleep_mode=True, data_parallel=2, non_causal=True)))) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_specs": frozenset({"FullAttentionSpec", "SlidingWindowSpec"})},
        {"tensor_parallel": 8},
        {"mla": True, "kv_specs": frozenset({"MLAAttentionSpec"})},
        {"continues_prefixes": False},
        {"speculative": "ngram"},
    ],
)
def test_served(changes: dict[str, Any]) -> None:
    """No fault."""
    check(Facts(**changes))


def test_every_fact_decides_something() -> None:
    """A fact that no refusal looks at would be noise."""
    assert {field.name for field in dataclasses.fields(Facts)} == {name for changes, _ in REFUSED for name in changes}


@pytest.fixture(scope="module")
def refused_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLA, which is refused on this backend."""
    return models.save(models.deepseek_v2, tmp_path_factory.mktemp("mla"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Full attention."""
    return models.save(models.llama, tmp_path_factory.mktemp("llama"))


def text_of(llm: LLM) -> tuple[list[int], int]:
    """Greedy token ids, and how many prompt tokens came from a cache."""
    (output,) = llm.generate([PROMPT], SamplingParams(max_tokens=8, temperature=0), use_tqdm=False)
    return list(output.outputs[0].token_ids), output.num_cached_tokens or 0


@pytest.mark.skipif(host.continues_mla_prefixes(), reason="MLA is served on a CPU with AMX")
def test_a_refused_model_stops_the_engine_or_runs_without_the_cache(refused_model: str) -> None:
    """The message reaches whoever starts the engine; with ``continue`` the text is that of an engine without the connector."""
    with pytest.raises(ConfigError, match=r"MLA where vLLM has chunked prefill.* Or remove --kv-transfer-config"):
        llm_with(refused_model, {"tiers": CPU}, **TINY)

    plain = LLM(refused_model, enforce_eager=True, dtype="float32", max_model_len=4096, seed=0, **TINY)
    expected, _ = text_of(plain)
    plain.llm_engine.engine_core.shutdown()

    llm = llm_with(refused_model, {"tiers": CPU, "on_failure": "continue"}, **TINY)
    try:
        core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
        assert isinstance(core.scheduler.connector, DisabledHalf)
        assert KVPoolWorker.live is None
        for _ in range(2):
            assert text_of(llm) == (expected, 0)
            assert llm.reset_prefix_cache(reset_connector=True)
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A disk tier's folder of which another process holds what belongs to rank 0; the scheduler's part is free."""
    folder = tmp_path / "disk"
    program = (
        "import sys, pathlib; from kvpool_connector.tiers.ownership import Ownership\n"
        "owner = Ownership(pathlib.Path(sys.argv[1]), 'rank-0'); print('locked', flush=True); sys.stdin.read()"
    )
    call = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}", str(folder)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield folder
        process.terminate()


def test_a_rank_that_cannot_start_stops_the_engine(llama: str, locked: Path) -> None:
    """With the field, the folder and its owner."""
    tiers = CPU | {"disk": {"path": str(locked), "size": "16Mi"}}
    with pytest.raises(ConfigError, match=r"tiers.disk.path: .*rank-0.* is in use by pid \d+"):
        llm_with(llama, {"tiers": tiers}, **TINY)
    assert KVPoolWorker.live is None


def test_a_rank_that_cannot_start_leaves_an_engine_without_the_cache(llama: str, locked: Path) -> None:
    """The scheduler's half is well and hears about it with the first job."""
    with running(llama, {"tiers": CPU}, **TINY) as engine:
        expected, _ = text_of(engine.llm)
    tiers = CPU | {"disk": {"path": str(locked), "size": "16Mi"}}
    llm = llm_with(llama, {"tiers": tiers, "on_failure": "continue"}, **TINY)
    try:
        assert KVPoolWorker.live is not None
        assert isinstance(KVPoolWorker.live.mover, NullMover)
        pool = llm.llm_engine.engine_core.engine_core.scheduler.connector.connector_scheduler.manager.pool  # type: ignore[attr-defined]
        for _ in range(3):
            assert text_of(llm) == (expected, 0)
            assert llm.reset_prefix_cache()
        assert "in use by pid" in pool.broken
        assert not pool.jobs._running
        assert not len(pool.index)
    finally:
        llm.llm_engine.engine_core.shutdown()
