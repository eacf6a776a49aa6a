"""Tiny models with random weights, one per layout of KV memory, made in a second and without a network.

What they say is nonsense; that two ways to the same KV memory say the same nonsense is the point. They have no tokenizer:
engines take ``skip_tokenizer_init`` and prompts are token ids below ``VOCABULARY``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

VOCABULARY = 512
WINDOW = 64
"""Tokens that a layer with a sliding window looks back."""
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 16_384,
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "tie_word_embeddings": True,
    # Larger than usual: with small weights a random model says the same token for ever, and a wrong block goes unnoticed.
    "initializer_range": 0.15,
}  # fmt: skip
_HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}


def _build(model: Any, config: Any) -> Any:
    return model(config)


def llama(**changes: Any) -> Any:
    """Full attention in every layer: one KV group."""
    return _build(LlamaForCausalLM, LlamaConfig(**(_COMMON | _HEADS | {"num_hidden_layers": 4} | changes)))


def gemma3() -> Any:
    """Four layers with a window, two with full attention: three KV groups that share block ids."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        **(_COMMON | _HEADS), num_hidden_layers=6, layer_types=kinds, sliding_window=WINDOW, query_pre_attn_scalar=32
    )
    model = _build(Gemma3ForCausalLM, config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.02)  # else the last token outweighs all that attention says
    return model


def gpt_oss() -> Any:
    """Windows and full attention in turn, with attention sinks, and experts."""
    config = GptOssConfig(
        **(_COMMON | _HEADS | {"tie_word_embeddings": False}), num_hidden_layers=4, sliding_window=WINDOW,
        num_local_experts=4, num_experts_per_tok=2, layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    return _build(GptOssForCausalLM, config)


def mistral() -> Any:
    """A window in every layer."""
    return _build(MistralForCausalLM, MistralConfig(**(_COMMON | _HEADS), num_hidden_layers=4, sliding_window=WINDOW))


def deepseek_v2(**changes: Any) -> Any:
    """MLA: one latent vector per token instead of keys and values, of the only size that vLLM's CPU kernel knows (576)."""
    settings: dict[str, Any] = {
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3, "q_lora_rank": None, "kv_lora_rank": 512,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "moe_intermediate_size": 64, "first_k_dense_replace": 1, "topk_method": "greedy",
        "n_group": 1, "topk_group": 1, "tie_word_embeddings": False,
    }  # fmt: skip
    config = DeepseekV2Config(**(_COMMON | settings | changes))
    return _build(DeepseekV2ForCausalLM, config)


def save(make: Callable[..., Any], folder: Path, seed: int = 1, **changes: Any) -> str:
    """Make the model, save it in safetensors, and return its folder as vLLM wants it.

    Args:
        make: one of the functions above.
        changes: of its configuration.
    """
    torch.manual_seed(seed)
    model = make(**changes)
    with torch.no_grad():
        for parameter in model.parameters():  # transformers leaves those of experts as they came from the allocator
            if parameter.dim() > 2:
                parameter.normal_(std=_COMMON["initializer_range"])
    model.save_pretrained(folder)
    return str(folder)
