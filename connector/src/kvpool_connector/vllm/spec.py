"""The factory that vLLM builds in every process: settings, geometry and identity, the same for scheduler and ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    LoadStoreSpec,
    OffloadingManager,
    OffloadingSpec,
    OffloadingWorker,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from kvpool_connector import identity
from kvpool_connector.config import ConnectorConfig, RemoteStore, format_bytes
from kvpool_connector.format import part_name
from kvpool_connector.log import get_logger
from kvpool_connector.stores import Breaker, Store
from kvpool_connector.tiers.arena import row_bytes_for
from kvpool_connector.transfer import Transfer
from kvpool_connector.vllm.facts import layout_facts

logger = get_logger(__name__)

EXTRA_KEY = "kvpool.settings"
"""Where the connector leaves `Settings` for the spec: vLLM hands a spec nothing but the extra configuration."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the connector knows and the spec needs."""

    config: ConnectorConfig
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TransferSpec(LoadStoreSpec):
    """A transfer in the type that vLLM carries from the scheduler to the ranks."""

    transfer: Transfer
    identity: str


class KVPoolSpec(OffloadingSpec):
    """Asked by vLLM for the manager in the scheduler's process and for the worker in each rank's."""

    def __init__(self, config: OffloadingConfig) -> None:
        """Raises:
        ValueError: a layout or a size that the connector cannot serve; the message names the setting to change.
        """
        super().__init__(config)
        settings = config.extra_config.get(EXTRA_KEY)
        if not isinstance(settings, Settings):
            raise ValueError("KVPoolSpec is built by KVPoolConnector: set kv_connector to KVPoolConnector")
        if self.blocks_per_chunk != 1:
            raise ValueError(
                "kv_connector_extra_config: remove block_size and blocks_per_chunk, kvpool moves single blocks"
            )
        if config.replicated_layout:
            raise ValueError(
                "MLA with tensor parallelism replicates KV over ranks, which kvpool does not serve yet: use TP 1"
            )
        self.settings = settings.config
        self.document = settings.facts | layout_facts(config)
        self.identity = identity.digest(self.document)
        self.row_bytes = row_bytes_for(config.worker_kv_bytes_per_block)
        size = self.settings.tiers.cpu.size
        self.slots = size // config.parallel.world_size // self.row_bytes
        if self.slots == 0:
            raise ValueError(
                f"tiers.cpu.size is {format_bytes(size)}, but one block needs {format_bytes(self.row_bytes)} on each of "
                f"{config.parallel.world_size} ranks: raise it"
            )

    def part_name(self, rank: int, key: bytes) -> bytes:
        """The name of a rank's part of a key."""
        return part_name(self.identity, rank, key)

    def connect(self, breaker: Breaker) -> Store:
        """A client of the remote store. Nothing is sent before its first use."""
        assert self.settings.remote is not None
        return _client(self.settings.remote, breaker)

    def get_manager(self) -> OffloadingManager:
        """The scheduler's half."""
        from kvpool_connector.vllm.manager import KVPoolManager

        return KVPoolManager(self)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """This rank's half.

        Raises:
            ValueError: KV memory on a device that the connector cannot copy from.
        """
        from kvpool_connector.vllm.worker import KVPoolWorker

        return KVPoolWorker(self, kv_caches)

    def describe(self) -> str:
        """One line for the log: what this engine's tiers can hold."""
        remote = self.settings.remote
        tokens = self.slots * min(self.tokens_per_block)
        where = "no remote store" if remote is None else f"{remote.type} at {remote.host}:{remote.port}"
        return (
            f"memory tier of {format_bytes(self.settings.tiers.cpu.size)}: {self.slots} blocks of "
            f"{format_bytes(self.config.worker_kv_bytes_per_block)} per rank, about {tokens} tokens; {where}; "
            f"identity {self.identity}"
        )


def _client(config: RemoteStore, breaker: Breaker) -> Store:
    from kvpool_connector.stores.redis import RedisStore

    return RedisStore(config, breaker)


def device_of(kv_caches: CanonicalKVCaches) -> torch.device:
    """The device of KV memory."""
    return kv_caches.tensors[0].tensor.device
