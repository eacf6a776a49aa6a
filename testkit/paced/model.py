"""Models of thin weights for the paced engine, one per layout of KV memory.

The weights are real and random, because the connector's identity of an engine is made from them;
no forward pass ever uses them. There is no tokenizer: prompts are token ids below ``VOCABULARY``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testkit.paced.profiles import Profile

VOCABULARY = 512
WINDOW = 256
"""Tokens that a layer with a sliding window looks back."""
HIDDEN = 64


def write_model(profile: Profile, folder: Path, seed: int = 1) -> str:
    """Write the profile's model, unless the folder has it, and return the folder as vLLM wants it.

    Args:
        seed: of the weights; engines whose weights differ share no cache.
    """
    if not (folder / "config.json").exists():
        import torch

        torch.manual_seed(seed)
        _make(profile).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def _make(profile: Profile) -> Any:
    import transformers

    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": HIDDEN,
        "max_position_embeddings": profile.max_model_tokens, "bos_token_id": 1, "eos_token_id": None,
        "pad_token_id": 0, "tie_word_embeddings": True, "num_hidden_layers": profile.layers,
        "dtype": "bfloat16",
    }  # fmt: skip
    if profile.layout == "mla":
        fields |= {
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 512,
            "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": HIDDEN,
            "first_k_dense_replace": profile.layers, "topk_method": "greedy", "n_group": 1,
            "topk_group": 1, "tie_word_embeddings": False,
        }  # fmt: skip
        return _build(transformers.DeepseekV2ForCausalLM, transformers.DeepseekV2Config, fields)
    fields |= {
        "num_attention_heads": profile.kv_heads, "num_key_value_heads": profile.kv_heads, "head_dim": profile.head_dim,
    }  # fmt: skip
    if profile.layout == "hybrid":
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * (profile.layers // 3)
        fields |= {"layer_types": kinds, "sliding_window": WINDOW}
        return _build(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, fields)
    return _build(transformers.LlamaForCausalLM, transformers.LlamaConfig, fields)


def _build(model: Any, config: Any, fields: dict[str, Any]) -> Any:
    return model(config(**fields))
