"""More than fits: preemption by a small KV pool, a memory tier that is smaller than the working set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from connector.tests.engine import models
from connector.tests.engine.harness import TINY, running, tokens
from kvpool_connector.transfer import Kind

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Full attention; a chunk of 128 tokens takes 256 KiB."""
    return models.save(models.llama, tmp_path_factory.mktemp("llama"))


def many(llm: LLM, count: int, tokens_each: int) -> list[list[int]]:
    """Texts of requests that run at the same time."""
    prompts = [tokens(100 + number, 200 + number, models.VOCABULARY) for number in range(count)]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=tokens_each, temperature=0), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_preemption(llama: str) -> None:
    """Eight requests grow to 13 blocks each in a pool of 40: most are preempted, and go on with what the tier holds of them."""
    few: dict[str, Any] = TINY | {"num_gpu_blocks_override": 40, "max_model_len": 1024}
    plain = LLM(llama, enforce_eager=True, dtype="float32", disable_log_stats=True, seed=0, **few)
    try:
        expected = many(plain, 8, 200)
    finally:
        plain.llm_engine.engine_core.shutdown()
    with running(llama, {"tiers": {"cpu": {"size": "64Mi"}}, "chunk_tokens": 32}, **few) as engine:
        preempted = count_preemptions(engine.llm)
        assert many(engine.llm, 8, 200) == expected
        assert len(preempted) >= 3
        assert {load.req_id for load in engine.loads()} & set(preempted), "preempted requests load what they had"
        engine.assert_nothing_is_left()


def count_preemptions(llm: LLM) -> list[str]:
    """Ids of requests that are preempted from now on."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    preempted: list[str] = []
    preempt = scheduler._preempt_request

    def record(request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(request, *args, **kwargs)

    scheduler._preempt_request = record
    return preempted


@pytest.mark.parametrize("disk", [False, True])
def test_a_memory_tier_that_is_smaller_than_the_working_set(disk: bool, llama: str, tmp_path: Path) -> None:
    """13 rows and 15 chunks, in turn. Alone, memory forgets; with a disk below it, everything is still a hit."""
    tiers: dict[str, Any] = {"cpu": {"size": "4Mi"}}
    if disk:
        tiers["disk"] = {"path": str(tmp_path / "disk"), "size": "64Mi"}
    prompts = [tokens(number, 700, models.VOCABULARY) for number in range(3)]
    with running(llama, {"tiers": tiers, "chunk_tokens": 128, "admission": "always"}, **TINY) as engine:
        assert engine.manager.pool.index.slots < 15
        texts = []
        for prompt in prompts:
            texts.append(engine.generate(prompt)[0])
            engine.settle()
        computed = engine.snapshot(Kind.STORE)
        hits = []
        for prompt, text in list(zip(prompts, texts, strict=True)) * 2:
            engine.forget()
            engine.overwrite()
            again, cached = engine.generate(prompt)
            assert again == text
            assert not [key for key, data in engine.snapshot(Kind.LOAD).items() if data != computed[key]]
            hits.append(cached)
            engine.settle()
        assert (hits == [640] * 6) == disk
        engine.assert_nothing_is_left()
