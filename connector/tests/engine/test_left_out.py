"""Requests that must not be served from the cache, or not from all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import LlamaForCausalLM
from vllm import SamplingParams, TokensPrompt
from vllm.inputs import EmbedsPrompt
from vllm.sampling_params import SamplingParams as Sampling
from vllm.v1.request import Request

from connector.tests.engine import models
from connector.tests.engine.harness import TINY, Engine, empty, remote, running, tokens
from kvpool_connector.vllm.keys import covered
from testkit.servers import KeyValueServer

pytestmark = pytest.mark.timeout(300)

PROMPT = tokens(1, 330, models.VOCABULARY)
WHOLE = 320
CPU: dict[str, Any] = {"tiers": {"cpu": {"size": "64Mi"}}, "chunk_tokens": 32}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Full attention."""
    return models.save(models.llama, tmp_path_factory.mktemp("llama"))


def ask(engine: Engine, prompt: Any, load_tiers: list[dict[str, str]] | None = None) -> tuple[list[int], int]:
    """Greedy token ids, and how many prompt tokens came from a cache."""
    extra = None if load_tiers is None else {"kv_transfer_params": {"kv_load_tiers": load_tiers}}
    sampling = SamplingParams(max_tokens=12, temperature=0, extra_args=extra)
    (output,) = engine.llm.generate([prompt], sampling, use_tqdm=False)
    return list(output.outputs[0].token_ids), output.num_cached_tokens or 0


def test_tiers_that_a_request_names(llama: str, store: KeyValueServer, tmp_path: Path) -> None:
    """vLLM's ``kv_load_tiers``: nothing is loaded from a tier that is not named, memory included."""
    empty(store)
    memory, shared = [{"medium": "CPU"}], [{"medium": "STORAGE", "locality": "REMOTE"}]
    with running(llama, CPU | {"remote": remote(store, tmp_path), "admission": "always"}, **TINY) as engine:
        text, _ = ask(engine, PROMPT)
        engine.settle()
        for tiers, cached in (([], 0), (shared, 0), (memory, WHOLE), (None, WHOLE)):
            engine.forget()
            assert ask(engine, PROMPT, tiers) == (text, cached), f"in memory and the store, {tiers}"
        engine.settle()
        for tiers, cached in (([], 0), (memory, 0), (shared, WHOLE)):
            engine.forget(tiers=True)
            assert ask(engine, PROMPT, tiers) == (text, cached), f"in the store alone, {tiers}"
            engine.settle()
        engine.assert_nothing_is_left()


# ---- prompts of embeddings -----------------------------------------------------------------------------------


def request(embeddings: torch.Tensor | None, mask: list[bool] | None = None) -> Request:
    ids = None if embeddings is not None and mask is None else [1] * 4
    return Request("r", ids, Sampling(max_tokens=1), None, prompt_embeds=embeddings, prompt_is_token_ids=mask)


def test_what_keys_cover() -> None:
    """Tokens, and embeddings of the model's type without a mask."""
    embeddings = torch.zeros(4, 8)
    assert covered(request(None), torch.float32)
    assert covered(request(embeddings), torch.float32)
    assert not covered(request(embeddings), torch.float16)
    assert not covered(request(embeddings, [True, False, True, True]), torch.float32)


def test_prompts_of_embeddings(llama: str) -> None:
    """Vectors are hashed by vLLM, so they hit. What tells them from tokens is not: such requests are left out.

    vLLM's own prefix cache is off, since it has the same keys.
    """
    vectors = LlamaForCausalLM.from_pretrained(llama).get_input_embeddings()(torch.arange(3, 103)).detach()
    zeros = torch.zeros(len(vectors), vectors.shape[1])
    options = TINY | {"enable_prompt_embeds": True, "enable_prefix_caching": False}
    with running(llama, CPU, **options) as engine:
        text, cached = ask(engine, EmbedsPrompt(prompt_embeds=vectors))
        assert cached == 0
        engine.settle()
        assert ask(engine, EmbedsPrompt(prompt_embeds=vectors)) == (text, 96)
        assert ask(engine, EmbedsPrompt(prompt_embeds=zeros[:80]))[1] == 0
        engine.settle()

        def mixed(*, are_tokens: bool) -> Any:
            prompt = {
                "prompt_embeds": zeros, "prompt_token_ids": [0] * len(zeros),
                "prompt_is_token_ids": [are_tokens] * len(zeros),
            }  # fmt: skip
            return cast(EmbedsPrompt, prompt)

        said: list[list[int]] = []
        for are_tokens in (True, False):
            for _ in range(2):
                text, cached = ask(engine, mixed(are_tokens=are_tokens))
                assert cached == 0
                said.append(text)
                engine.settle()
        assert said[0] == said[1]
        assert said[2] == said[3]
        engine.assert_nothing_is_left()
        plain = TokensPrompt(prompt_token_ids=PROMPT["prompt_token_ids"])
        ask(engine, plain)
        engine.settle()
        assert ask(engine, plain)[1] == WHOLE, "others are served as before"
