"""What happens when the connector cannot start: the engine stops, or it runs without the cache.

Stopping is the default: a pool that silently does nothing costs as much as a broken one and is found later. Where an engine
must come up whatever happens, ``on_failure: continue`` puts a connector in its place that never hits and never stores.
"""

from __future__ import annotations

import os
from abc import ABCMeta
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingConnectorMetadata

from kvpool_connector import config as kvpool_config
from kvpool_connector.log import get_logger

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

ENV_ON_FAILURE = "KVPOOL_ON_FAILURE"


class StopOrContinue(ABCMeta):
    """Makes the class it belongs to answer a fault in its constructor by configuration."""

    def __call__(cls, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> Any:
        """An instance, or an :class:`InertConnector`.

        Raises:
            Exception: what the constructor raised, where ``on_failure`` is "stop".
        """
        try:
            return super().__call__(vllm_config, role, kv_cache_config)
        except Exception as error:
            if not _continues(vllm_config):
                raise
            logger.error("kvpool cannot start, the engine runs without it: %s", error)
            return InertConnector(vllm_config, role, kv_cache_config)


def _continues(vllm_config: VllmConfig) -> bool:
    """The configuration's word, or where it cannot be read, the environment's or vLLM's extra configuration's."""
    assert vllm_config.kv_transfer_config is not None
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    try:
        chosen = kvpool_config.load(extra).on_failure
    except ValueError:
        chosen = "stop"
    asked = {
        ENV_ON_FAILURE: os.environ.get(ENV_ON_FAILURE),
        "kv_connector_extra_config.on_failure": extra.get("on_failure"),
    }
    for where, word in asked.items():
        if word not in (None, "stop", "continue"):
            logger.warning("%s=%r counts as 'stop': set it to 'stop' or 'continue'", where, word)
    return "continue" in (chosen, *asked.values())


class InertConnector(KVConnectorBase_V1, SupportsHMA):
    """Hits nothing, stores nothing. Understands the metadata of a healthy half in another process, and ignores it."""

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache that does nothing loses nothing."""
        return False

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Not looked at."""

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Nothing to load."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing to store."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """No hit."""
        return 0, False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Nothing was promised."""

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> OffloadingConnectorMetadata:
        """An empty step, which a healthy rank understands too."""
        return OffloadingConnectorMetadata({}, {})

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Blocks may be freed."""
        return False, None

    def reset_cache(self) -> bool | None:
        """Empty already."""
        return True
