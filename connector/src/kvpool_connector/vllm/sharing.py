"""Data-parallel engines of one node share what the configuration grants to all of them.

``vllm serve --data-parallel-size N`` runs N engines with one configuration. Sizes are those of the
Pod, so each engine takes its share, and each has a folder of its own below ``disk.path``, because
an index belongs to one engine. vLLM 0.32 tells an engine of a dense model that it is alone
(`reconfigure_for_independent_dp_rank`), and leaves it its number.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kvpool_connector.config import ConnectorConfig
from kvpool_connector.vllm.guard import LOCAL_ENGINES

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclasses.dataclass(frozen=True)
class Share:
    """An engine among the data-parallel engines that were started together."""

    index: int = 0
    """Its number among all of them, which stays the same over restarts."""
    engines: int = 1
    """How many there are in all."""
    local: int = 1
    """How many of them are on this node."""


def share_of(vllm_config: VllmConfig) -> Share:
    """Return which share this engine has.

    Where the plug-in could not note how many engines this node has, all of them count as here: memory
    is then left unused rather than taken twice.
    """
    parallel, transfer = vllm_config.parallel_config, vllm_config.kv_transfer_config
    assert transfer is not None
    engines = max(parallel.data_parallel_size, parallel.elastic_ep_max_dp_size)
    local = transfer.kv_connector_extra_config.get(LOCAL_ENGINES, engines)
    return Share(parallel.data_parallel_index, engines, max(1, local))


def shared_out(config: ConnectorConfig, share: Share, *, sizes: bool = True) -> ConnectorConfig:
    """Return the configuration with this engine's share of the tiers.

    Args:
        sizes: False where each size is an engine's already, as in LMCache's words.
    """
    if share.engines == 1:
        return config
    parts = share.local if sizes else 1
    cpu = config.tiers.cpu.model_copy(update={"size": config.tiers.cpu.size // parts})
    disk = config.tiers.disk
    if disk is not None:
        disk = disk.model_copy(update={"size": disk.size // parts, "path": f"{disk.path}/dp-{share.index}"})
    tiers = config.tiers.model_copy(update={"cpu": cpu, "disk": disk})
    return config.model_copy(update={"tiers": tiers})
