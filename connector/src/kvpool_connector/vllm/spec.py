"""The factory that vLLM builds in every process: settings, geometry and identity, the same for scheduler and ranks."""

from __future__ import annotations

import dataclasses
import math
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
from kvpool_connector.format import part_name
from kvpool_connector.log import get_logger
from kvpool_connector.stores import Breaker, Memory, Store
from kvpool_connector.stores.caller import rows_of_call
from kvpool_connector.stores.factory import make_store, most_lent
from kvpool_connector.tiers.arena import row_bytes_for
from kvpool_connector.transfer import Transfer
from kvpool_connector.vllm.facts import layout_facts
from kvpool_connector.vllm.handover import Role

logger = get_logger(__name__)

EXTRA_KEY = "kvpool.settings"
"""Where the connector leaves `Settings` for the spec: vLLM hands a spec nothing but the extra configuration."""
SPARE_ROWS = 2
"""Rows of an arena beyond the slots: for comparisons and for probes. Like those for `most_lent` and `disk_lends`, part of the
byte budget."""


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
        self.identity = identity.digest(self.document)
        self.chunk_bytes = config.worker_kv_bytes_per_block * self.blocks_per_chunk
        self.chunk_tokens = math.lcm(*self.tokens_per_block) * self.blocks_per_chunk
        self.chunk_parts = config.parallel.world_size * sum(
            self.chunk_tokens // (tokens * self.blocks_per_chunk) for tokens in self.tokens_per_block
        )
        self.row_bytes = row_bytes_for(self.chunk_bytes)
        disk = self.settings.tiers.disk
        rows = self._rows_of("tiers.cpu.size", self.settings.tiers.cpu.size, SPARE_ROWS + 2 + (disk is not None))
        self.most_lent = most_lent(self.settings.remote, self.row_bytes, rows)
        self.disk_lends = 0 if disk is None else rows_of_call(self.row_bytes, rows)
        self.spare_rows = SPARE_ROWS + self.most_lent + self.disk_lends
        self.slots = rows - self.spare_rows
        self.disk_slots = 0 if disk is None else self._rows_of("tiers.disk.size", disk.size, 1)

    def _rows_of(self, field: str, size: int, least: int) -> int:
        world_size = self.config.parallel.world_size
        rows = size // world_size // self.row_bytes
        if rows < least:
            raise ConfigError(
                f"{field}: {format_bytes(size)} is too small: {least} chunks of {format_bytes(self.row_bytes)} on each of "
                f"{world_size} ranks need {format_bytes(least * self.row_bytes * world_size)}"
            )
        return rows

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:  # noqa: ARG003 - vLLM calls it so
        """What `KVPoolManager.get_stats` may tell."""
        from kvpool_connector.vllm.metrics import DEFINITIONS

        return DEFINITIONS

    def part_name(self, rank: int, key: bytes) -> bytes:
        """The name of a rank's part of a key."""
        return part_name(self.identity, rank, key)

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
        from kvpool_connector.vllm.manager import KVPoolManager

        return KVPoolManager(self)

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
        tokens = min(self.tokens_per_block) * self.blocks_per_chunk
        disk = (
            ""
            if tiers.disk is None
            else f"; disk tier of {format_bytes(tiers.disk.size)} in {tiers.disk.path}: {self.disk_slots} chunks"
        )
        where = "no remote store" if remote is None else remote.where
        return (
            f"chunks of {tokens} tokens, {format_bytes(self.chunk_bytes)} per rank; memory tier of "
            f"{format_bytes(tiers.cpu.size)}: {self.slots} chunks, about {self.slots * tokens} tokens{disk}; {where}; "
            f"identity {self.identity}"
        )


def device_of(kv_caches: CanonicalKVCaches) -> torch.device:
    """The device of KV memory."""
    return kv_caches.tensors[0].tensor.device
