"""An attention backend for forward passes that compute nothing: any block size, no kernels."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata, MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

KERNEL_BLOCK_TOKENS = 16


class PacedMetadataBuilder(AttentionMetadataBuilder[Any]):
    """Hands on what vLLM's runner prepared."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Any:
        """Return the metadata that is common to all backends."""
        return common_attn_metadata


class PacedAttentionBackend(CPUAttentionBackend):
    """The CPU's layers and layouts of KV memory, with blocks of a GPU's size."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:  # noqa: ARG004 - vLLM passes it
        """Return the sizes that blocks may have."""
        return [MultipleOf(KERNEL_BLOCK_TOKENS)]

    @staticmethod
    def get_builder_cls() -> Any:
        """Return the class that prepares a pass."""
        return PacedMetadataBuilder
