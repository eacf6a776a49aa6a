"""The factory that vLLM builds in every process: settings, geometry and identity, the same for scheduler and ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    LoadStoreSpec,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadingWorker,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from kvpool_connector import identity
from kvpool_connector.config import ConfigError, ConnectorConfig, format_bytes
from kvpool_connector.geometry import Blocks, geometry_of
from kvpool_connector.log import get_logger
from kvpool_connector.stores import Breaker, Memory, Store
from kvpool_connector.stores.factory import make_store
from kvpool_connector.transfer import Transfer
from kvpool_connector.vllm.facts import layout_facts
from kvpool_connector.vllm.handover import Role

logger = get_logger(__name__)

EXTRA_KEY = "kvpool.settings"
"""Where the connector leaves `Settings` for the spec: vLLM hands a spec nothing but the extra configuration."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the connector knows and the spec needs."""

    config: ConnectorConfig
    facts: dict[str, Any]
    role: Role = Role.BOTH


@dataclasses.dataclass(frozen=True)
class TransferSpec(LoadStoreSpec):
    """A transfer in the type that vLLM carries from the scheduler to the ranks."""

    transfer: Transfer
    identity: str


class KVPoolSpec(OffloadingSpec):
    """Asked by vLLM for the manager in the scheduler's process and for the worker in each rank's."""

    def __init__(self, config: OffloadingConfig) -> None:
        """Raises:
        ConfigError: a size that the connector cannot serve; the message names the setting to change.
        """
        super().__init__(config)
        settings = config.extra_config.get(EXTRA_KEY)
        if not isinstance(settings, Settings):
            raise ConfigError("KVPoolSpec is built by KVPoolConnector: set kv_connector to KVPoolConnector")
        self.settings, self.role = settings.config, settings.role
        self.document = settings.facts | layout_facts(config)
        blocks = Blocks(
            world_size=config.parallel.world_size,
            tokens=tuple(self.tokens_per_block),
            nbytes=config.worker_kv_bytes_per_block,
            per_chunk=self.blocks_per_chunk,
        )
        self.geometry = geometry_of(identity.digest(self.document), blocks, self.settings)

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:  # noqa: ARG003 - vLLM calls it so
        """What `KVPoolManager.get_stats` may tell."""
        from kvpool_connector.vllm.metrics import DEFINITIONS

        return DEFINITIONS

    def connect(self, breaker: Breaker, memory: Memory | None = None, *, lends: bool = False) -> Store:
        """A client of the remote store. Nothing is sent before its first use.

        Args:
            memory: where the values are that it shall move.
            lends: where engines lend the store memory, this client does so for its process.
        """
        assert self.settings.remote is not None
        return make_store(self.settings.remote, breaker, memory, lends=lends)

    def get_manager(self) -> OffloadingManager:
        """The scheduler's half."""
        from kvpool_connector.vllm.build import make_manager

        return make_manager(self)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """This rank's half.

        Raises:
            ConfigError: KV memory on a device that the connector cannot copy from, a folder that it cannot use.
        """
        from kvpool_connector.vllm.worker import make_worker

        return make_worker(self, kv_caches)

    def describe(self) -> str:
        """One line for the log: what this engine's tiers can hold."""
        tiers, remote = self.settings.tiers, self.settings.remote
        geometry, tokens = self.geometry, self.geometry.group_tokens
        disk = (
            ""
            if tiers.disk is None
            else f"; disk tier of {format_bytes(tiers.disk.size)} in {tiers.disk.path}: {geometry.disk_slots} chunks"
        )
        where = "no remote store" if remote is None else remote.where
        return (
            f"chunks of {tokens} tokens, {format_bytes(geometry.chunk_bytes)} per rank; memory tier of "
            f"{format_bytes(tiers.cpu.size)}: {geometry.slots} chunks, about {geometry.slots * tokens} tokens{disk}; {where}; "
            f"identity {geometry.identity}"
        )


def device_of(kv_caches: CanonicalKVCaches) -> torch.device:
    """The device of KV memory."""
    return kv_caches.tensors[0].tensor.device
