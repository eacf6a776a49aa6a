"""vLLM's platform for the paced engine: the CPU's, with the settings of a GPU.

Found through the entry point in ``plugin/``, whose folder has to be on ``sys.path``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.platforms.cpu import CpuPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def platform() -> str:
    """Name the platform; vLLM calls it through the entry point."""
    return f"{__name__}.PacedPlatform"


class PacedPlatform(CpuPlatform):
    """A CPU that schedules ahead of its passes, as vLLM does on GPUs."""

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Take the CPU's settings but for those that a GPU's engine has otherwise."""
        scheduler, cache = vllm_config.scheduler_config, vllm_config.cache_config
        parallel = vllm_config.parallel_config
        kept = (
            (scheduler, "enable_chunked_prefill"),
            (scheduler, "max_num_batched_tokens"),
            (cache, "enable_prefix_caching"),  # the CPU's kernel for MLA has neither of these
            (cache, "block_size"),
            (parallel, "distributed_executor_backend"),
        )
        before = [(where, name, getattr(where, name)) for where, name in kept]
        super().check_and_update_config(vllm_config)
        for where, name, value in before:
            setattr(where, name, value)
        scheduler.async_scheduling = True
        parallel.worker_cls = "testkit.paced.worker.PacedWorker"

    @classmethod
    def get_attn_backend_cls(
        cls, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        """Name the backend of a layer."""
        if attn_selector_config.use_mla:
            name: str = super().get_attn_backend_cls(selected_backend, attn_selector_config, num_heads)
            return name
        return "testkit.paced.attention.PacedAttentionBackend"
