"""vLLM's features on top of a served layout: each hits where it may and only there, with the right bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from connector.tests.engine import models
from connector.tests.engine.harness import TINY, Engine, running, tokens
from connector.tests.engine.ranks import ranks_running
from kvpool_connector.transfer import Kind
from kvpool_connector.vllm import adapters as adapters_module
from testkit.patience import PATIENCE_S

pytestmark = pytest.mark.timeout(300)

KVPOOL: dict[str, Any] = {"tiers": {"cpu": {"size": "64Mi"}}, "chunk_tokens": 32}
PROMPT = tokens(1, 330, models.VOCABULARY)
WHOLE = 320


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Full attention."""
    return models.save(models.llama, tmp_path_factory.mktemp("llama"))


def ask(engine: Engine, prompt: TokensPrompt, lora: LoRARequest | None = None, **sampling: Any) -> Any:
    """One request's output."""
    parameters = SamplingParams(max_tokens=12, temperature=0, **sampling)
    (output,) = engine.llm.generate([prompt], parameters, lora_request=lora, use_tqdm=False)
    return output


def ids(output: Any) -> list[int]:
    """The text."""
    return list(output.outputs[0].token_ids)


def assert_hits_with_the_same_bytes(engine: Engine, prompt: TokensPrompt, hit: int, **options: Any) -> list[int]:
    """Cold, overwritten, warm."""
    cold = ask(engine, prompt, **options)
    assert not cold.num_cached_tokens
    engine.settle()
    computed = engine.snapshot(Kind.STORE)
    engine.forget()
    engine.overwrite()
    warm = ask(engine, prompt, **options)
    assert warm.num_cached_tokens == hit
    loaded = engine.snapshot(Kind.LOAD)
    assert len(loaded) >= hit // engine.block_tokens
    assert not [key for key, data in loaded.items() if data != computed[key]]
    assert ids(warm) == ids(cold)
    engine.forget()
    return ids(cold)


def test_requests_that_differ_in_the_salt_share_nothing(llama: str) -> None:
    """And one that asks for log-probabilities of its prompt reads nothing, since it needs all of it computed."""
    with running(llama, KVPOOL, **TINY) as engine:
        salted = [TokensPrompt(prompt_token_ids=PROMPT["prompt_token_ids"], cache_salt=salt) for salt in "ab"]
        text = assert_hits_with_the_same_bytes(engine, salted[0], WHOLE)
        for prompt in (salted[1], PROMPT):
            other = ask(engine, prompt)
            assert (ids(other), other.num_cached_tokens) == (text, 0)
            engine.settle()
            engine.forget()
        assert ask(engine, PROMPT).num_cached_tokens == WHOLE
        engine.forget()

        scored = ask(engine, PROMPT, prompt_logprobs=1)
        assert (ids(scored), scored.num_cached_tokens) == (text, 0)
        assert len(scored.prompt_logprobs) == len(PROMPT["prompt_token_ids"])
        engine.assert_nothing_is_left()


def adapter(folder: Path, seed: int) -> str:
    """A LoRA adapter of rank 4 on the projections to queries and values."""
    folder.mkdir()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "", "bias": "none", "lora_dropout": 0.0,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{side}.weight": torch.randn(shape) * 0.3
        for layer in range(4)
        for name, outputs in (("q_proj", 128), ("v_proj", 64))
        for side, shape in (("A", (4, 128)), ("B", (outputs, 4)))
    }
    save_file(weights, str(folder / "adapter_model.safetensors"))
    return str(folder)


def test_adapters_share_nothing(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with each other nor with the model; an adapter hits its own blocks."""
    monkeypatch.setattr(adapters_module, "PATIENCE_S", PATIENCE_S)
    adapters = [LoRARequest(name, n, adapter(tmp_path / name, n)) for n, name in enumerate("xy", start=1)]
    with running(llama, KVPOOL, **TINY, enable_lora=True, max_loras=2, max_lora_rank=8) as engine:
        texts = [assert_hits_with_the_same_bytes(engine, PROMPT, WHOLE, lora=lora) for lora in (*adapters, None)]
        assert len(set(map(tuple, texts))) == 3, "adapters that change nothing would prove nothing"
        engine.assert_nothing_is_left()


def test_without_vllms_own_prefix_cache(llama: str) -> None:
    """``--no-enable-prefix-caching``: the connector hashes blocks all the same, and every hit comes from its tiers."""
    with running(llama, KVPOOL, **TINY, enable_prefix_caching=False) as engine:
        assert_hits_with_the_same_bytes(engine, PROMPT, WHOLE)
        again = ask(engine, PROMPT)
        assert again.num_cached_tokens == WHOLE
        assert len(engine.loads()) == 1
        engine.assert_nothing_is_left()


@pytest.mark.slow
def test_speculative_decoding_by_ngrams(tmp_path: Path) -> None:
    """Drafts that are thrown away leave no wrong block behind: prompt and generated text are loaded, and equal.

    In a process of its own: once Numba has compiled the drafting, vLLM cannot start another engine in the same process.
    """
    llama = models.save(models.llama, tmp_path, initializer_range=0.02)  # says the same token again and again
    repeated = TokensPrompt(prompt_token_ids=PROMPT["prompt_token_ids"][:40] * 8)
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    with running(llama, KVPOOL, **TINY) as engine:
        plain, _ = engine.generate(repeated, tokens=100)
    with ranks_running(llama, KVPOOL, distributed_executor_backend="mp", speculative_config=speculative) as ranks:
        steps = count_steps(ranks.llm)
        cold, _ = ranks.generate(repeated, tokens=100)
        assert cold == plain
        assert len(steps) < 95, "no draft was accepted"
        ranks.settle()
        (computed,) = ranks.snapshots("store")
        assert len(computed) == (320 + 99) // 32
        ranks.forget()
        _, hit = ranks.generate(TokensPrompt(prompt_token_ids=[*repeated["prompt_token_ids"], *cold]), tokens=3)
        (loaded,) = ranks.snapshots("load")
        assert (hit, len(loaded)) == (13 * 32, 13)
        assert loaded == computed


def count_steps(llm: LLM) -> list[int]:
    """Tokens of each step from now on."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    steps: list[int] = []
    schedule = scheduler.schedule

    def record(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        if output.total_num_scheduled_tokens:
            steps.append(output.total_num_scheduled_tokens)
        return output

    scheduler.schedule = record
    return steps


def test_windows_kept_whole(tmp_path: Path) -> None:
    """``--disable-hybrid-kv-cache-manager``: layers with a window keep all blocks, in one group with the others."""
    model = models.save(models.gemma3, tmp_path)
    kvpool = {"tiers": {"cpu": {"size": "64Mi"}}}
    with running(model, kvpool, **TINY, disable_hybrid_kv_cache_manager=True) as engine:
        assert len(engine._pages) == 1
        assert_hits_with_the_same_bytes(engine, PROMPT, 256)
        engine.assert_nothing_is_left()


def test_images_are_part_of_a_blocks_hash() -> None:
    """No vision model is small enough to run here: this shows only that vLLM's hashes, which keys are made of, differ."""
    hash_of = get_hash_fn_by_name("sha256")
    init_none_hash(hash_of)
    hasher = get_request_block_hasher(32, hash_of)

    def hashes(image: str) -> list[bytes]:
        feature = MultiModalFeatureSpec(
            data=None, modality="image", identifier=image, mm_position=PlaceholderRange(offset=40, length=16)
        )
        request = Request(
            "r",
            PROMPT["prompt_token_ids"],
            SamplingParams(max_tokens=1),
            None,
            mm_features=[feature],
            block_hasher=hasher,
        )
        return list(request.block_hashes)

    one, same, other = hashes("cat"), hashes("cat"), hashes("dog")
    assert one == same
    assert one[0] == other[0], "before the image"
    assert not set(one[1:]) & set(other[1:])
