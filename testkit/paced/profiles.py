"""The GPUs and models that the paced engine stands for, by name."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Layout = Literal["full", "mla", "hybrid"]

KEY = "kvpool_paced"
"""The key in vLLM's ``additional_config`` that carries a profile to every process of an engine."""
ELEMENT_BYTES = 2
"""Bytes of a number in KV memory: engines run in bfloat16."""
MLA_ELEMENTS = 576
"""Numbers of a token and layer of DeepSeek's MLA: 512 of the latent vector and 64 of its rotary part."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """The pace of a GPU and the shape of the model on it.

    KV memory is thinner here than on the GPU, because checking and copying it must be possible on
    two cores. The link is slower in the same proportion, so that a token takes as long to copy.
    """

    step_s: float
    """Seconds that every forward pass takes, however few tokens it computes."""
    prefill_tokens_per_s: float
    """Tokens that a pass computes in each second beyond ``step_s``."""
    link_bytes_per_s: float
    """Rate of the GPU's link to host memory, in each direction."""
    gpu_kv_bytes_per_token: int
    """Bytes of KV that the real model has per token on one card."""
    layout: Layout = "full"
    ranks: int = 1
    """Cards, each of which is a process where there are several."""
    layers: int = 4
    kv_heads: int = 2
    """KV heads of all ranks together."""
    head_dim: int = 64
    block_tokens: int = 16
    device_tokens: int = 16_384
    """Tokens that KV memory holds."""
    max_model_tokens: int = 16_384
    max_batched_tokens: int = 2048
    """vLLM's ``max_num_batched_tokens``: longer prompts are computed in pieces of this size."""
    link_latency_s: float = 20e-6
    """Seconds that a batch of copies takes, however small it is."""
    stamps: int = 2
    """Words of a token's KV in each layer that are written and checked, evenly spaced."""
    recheck_every: int = 1
    """A request's first pass checks all positions that it reads. Of later passes, each checks every
    n-th position, in turns."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Return the bytes of KV that a token has here on one rank."""
        if self.layout == "mla":
            return self.layers * MLA_ELEMENTS * ELEMENT_BYTES
        return self.layers * self.kv_heads // self.ranks * self.head_dim * 2 * ELEMENT_BYTES

    @property
    def blocks(self) -> int:
        """Return the blocks of KV memory, one of which is vLLM's null block.

        A hybrid model has three groups of layers, each with blocks of its own.
        """
        groups = 3 if self.layout == "hybrid" else 1
        return groups * self.device_tokens // self.block_tokens + 1

    @property
    def paced_link_bytes_per_s(self) -> float:
        """Return the rate at which the thinner KV takes as long per token as the real one."""
        return self.link_bytes_per_s * self.kv_bytes_per_token / self.gpu_kv_bytes_per_token

    def pass_s(self, tokens: int) -> float:
        """Return the seconds that a forward pass over so many tokens takes."""
        return self.step_s + tokens / self.prefill_tokens_per_s

    def as_config(self) -> dict[str, Any]:
        """Return the form that vLLM carries in ``additional_config``."""
        return {KEY: dataclasses.asdict(self)}

    @classmethod
    def of_config(cls, additional_config: Any) -> Profile:
        """Return the profile that :meth:`as_config` made.

        Raises:
            ValueError: the engine was started without one.
        """
        fields = additional_config.get(KEY) if isinstance(additional_config, dict) else None
        if fields is None:
            raise ValueError(
                f"the paced platform runs engines of testkit.paced.engine alone: additional_config has no {KEY!r}"
            )
        return cls(**fields)


_LLAMA_8B = Profile(
    step_s=0.012,
    prefill_tokens_per_s=19_000,
    link_bytes_per_s=50e9,
    gpu_kv_bytes_per_token=32 * 8 * 128 * 2 * ELEMENT_BYTES,
)
_LLAMA_70B = Profile(
    step_s=0.020,
    prefill_tokens_per_s=12_000,
    link_bytes_per_s=50e9,
    gpu_kv_bytes_per_token=80 * 128 * 2 * ELEMENT_BYTES,
    ranks=2,
    layers=6,
)

PROFILES: dict[str, Profile] = {
    # Llama 8B on one card, with KV of 2 KiB a token instead of 128 KiB.
    "llama-8b": _LLAMA_8B,
    # The same with KV of 32 KiB a token: for measurements against a store, whose bytes are real.
    "llama-8b-thick": dataclasses.replace(_LLAMA_8B, layers=8, kv_heads=8, head_dim=128, recheck_every=16),
    # A faster card or a smaller model: 50 000 tokens a second, 10 ms a step.
    "fast": dataclasses.replace(_LLAMA_8B, step_s=0.010, prefill_tokens_per_s=50_000),
    # Llama 70B at TP 8, of whose ranks two run here: 40 KiB a token on each card.
    "llama-70b-tp8": _LLAMA_70B,
    # One latent vector a token and layer instead of keys and values.
    "mla": dataclasses.replace(_LLAMA_8B, layout="mla", gpu_kv_bytes_per_token=61 * MLA_ELEMENTS * ELEMENT_BYTES),
    # Sliding windows and full attention in turn: several KV groups over the same memory.
    "hybrid": dataclasses.replace(_LLAMA_8B, layout="hybrid", layers=6),
}  # fmt: skip
