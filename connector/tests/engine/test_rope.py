"""Which models' KV bytes depend on the longest context, and that vLLM's tables say the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT, get_rope

from kvpool_connector.vllm.rope import OF_FIXED_LENGTH, depends_on_length

ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "ntk": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "deepseek_yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "deepseek_llama_scaling": {"factor": 4.0, "original_max_position_embeddings": 64},
    "proportional": {},
    "bailing_mrope": {"mrope_section": [4, 2, 2]},
    "openpangu": {"mrope_section": [4, 2, 2], "mrope_interleaved": True},
    "dynamic": {"factor": 4.0, "max_trained_positions": 64},
}  # fmt: skip
"""Parameters of each kind for heads of 16 values."""
LONG = {
    "rope_type": "longrope", "original_max_position_embeddings": 4096, "short_factor": [1.0], "long_factor": [2.0],
}  # fmt: skip


def table(kind: str, longest: int) -> torch.Tensor:
    """The first rows of the table that vLLM makes for a longest context."""
    _ROPE_DICT.clear()
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(custom_ops=["none"]))):
        parameters = {"rope_type": kind, "rope_theta": 10_000.0} | ROPES[kind]
        rope = get_rope(16, longest, rope_parameters=parameters, dtype=torch.float32)
    assert isinstance(rope.cos_sin_cache, torch.Tensor)
    return rope.cos_sin_cache[:64].clone()


@pytest.mark.parametrize("kind", sorted(ROPES))
def test_the_list_agrees_with_vllms_tables(kind: str) -> None:
    """A kind is in the list exactly if a longer context leaves the rows of a shorter one as they are."""
    assert (kind in OF_FIXED_LENGTH) is torch.equal(table(kind, 256), table(kind, 1024))


@pytest.mark.parametrize("kind", sorted(OF_FIXED_LENGTH))
def test_kinds_that_do_not_depend_on_it(kind: str) -> None:
    """Neither at the top nor below."""
    rope = {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4}}
    assert not depends_on_length(rope | {"model_type": "llama"})
    assert not depends_on_length({"text_config": rope, "model_type": "llava"})


@pytest.mark.parametrize(
    "configuration",
    [
        {"rope_parameters": LONG},
        {"rope_scaling": {"type": "su", "short_factor": [1.0]}},
        {"text_config": {"rope_parameters": LONG}},
        {"thinker_config": {"text_config": {"rope_parameters": LONG}}},
        {"text_config": {"rope_parameters": {"full_attention": LONG, "sliding_attention": {"rope_type": "default"}}}},
        {"rope_parameters": {"rope_type": "dynamic", "alpha": 1000.0}},
        {"rope_parameters": {"rope_type": "invented tomorrow"}},
        {"decoders": [{"rope_parameters": LONG}]},
        {"dual_chunk_attention_config": {"chunk_size": 8}},
        {"text_config": {"model_type": "llama4_text"}},
    ],
    ids=str,
)
def test_models_that_depend_on_it(configuration: dict[str, Any]) -> None:
    """At any level, in any layer; what is not known counts too."""
    assert depends_on_length(configuration)
    assert depends_on_length({}, configuration)


@pytest.mark.parametrize(
    "configuration",
    [{}, {"rope_parameters": None}, {"rope_scaling": {}}, {"type": "longrope"}, {"dual_chunk_attention_config": None}],
    ids=str,
)
def test_models_without_such_a_rope(configuration: dict[str, Any]) -> None:
    """A ``type`` outside of a rope's parameters means something else."""
    assert not depends_on_length(configuration)
