"""A connector that never hits and never stores, for engines that must come up whatever happens.

It needs nothing of vLLM but the base class, so it works where kvpool's implementation cannot be
imported: with another version of vLLM, or in an image that lacks one of our dependencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from kvpool_connector.log import get_logger
from kvpool_connector.vllm import failure

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = get_logger(__name__)


class DisabledConnector(KVConnectorBase_V1, SupportsHMA):
    """One half of an engine that runs without the cache, the scheduler's or a rank's."""

    @property
    def requires_kv_delivery(self) -> bool:
        """Return False: a cache that does nothing loses nothing."""
        return False

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Do nothing: KV memory is never touched."""

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Do nothing: there is nothing to load."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: there is nothing to wait for."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Do nothing: nothing is stored."""

    def wait_for_save(self) -> None:
        """Do nothing: there is nothing to wait for."""

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return that nothing was found."""
        return 0, False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Do nothing: nothing was promised."""

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """Return a step without work."""
        return KVConnectorMetadata()

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Return that the request's blocks may be freed."""
        return False, None

    def reset_cache(self) -> bool | None:
        """Return True: the cache is empty already."""
        return True


class UnavailableConnector(DisabledConnector):
    """Stands for an implementation that could not be imported; see :func:`unavailable`."""

    why: ClassVar[str]
    """What is in the way, as a sentence without its end."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Take the implementation's place where ``on_failure`` is "continue".

        Raises:
            RuntimeError: ``on_failure`` is "stop"; one sentence that names the fault and the ways out.
        """
        assert vllm_config.kv_transfer_config is not None
        if not failure.continues(vllm_config.kv_transfer_config.kv_connector_extra_config):
            raise RuntimeError(f"{self.why}; {failure.WAY_OUT}")
        if role is KVConnectorRole.SCHEDULER:  # one line for the engine, whatever its number of ranks
            logger.error("the engine runs without the cache: %s", self.why)
        super().__init__(vllm_config, role, kv_cache_config)


def unavailable(why: str) -> type[UnavailableConnector]:
    """Return the class that vLLM gets in place of an implementation that could not be imported."""
    return type("KVPoolConnector", (UnavailableConnector,), {"why": why})
