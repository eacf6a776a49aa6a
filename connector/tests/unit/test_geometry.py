"""The sizes of an engine's cache, from the bytes that are configured and the blocks that vLLM has."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kvpool_connector.config import ConfigError, ConnectorConfig
from kvpool_connector.geometry import SPARE_ROWS, Blocks, Geometry, geometry_of

BLOCKS = Blocks(world_size=2, tokens=(16, 16, 32), nbytes=64 << 10, per_chunk=4)
"""Two ranks, three KV groups of which one has larger blocks, chunks of four blocks."""


def geometry(blocks: Blocks = BLOCKS, **tiers: Any) -> Geometry:
    config = ConnectorConfig.model_validate({"tiers": {"cpu": {"size": "64Mi"}} | tiers})
    return geometry_of("0123", blocks, config)


def test_chunks() -> None:
    it = geometry()
    assert it.chunk_bytes == 256 << 10
    assert it.group_tokens == 64
    assert it.chunk_tokens == 128
    assert it.chunk_parts == 2 * (2 + 2 + 1)


def test_the_memory_budget_holds_all_rows_of_all_ranks() -> None:
    it = geometry(disk={"path": "/var/kvpool", "size": "1Gi"})
    assert it.arena_rows * it.row_bytes * 2 <= 64 << 20
    assert (it.arena_rows + 1) * it.row_bytes * 2 > 64 << 20
    assert it.slots == it.arena_rows - SPARE_ROWS - it.store_lends - it.disk_lends
    assert it.disk_lends > 0


def test_the_disk_budget_holds_all_slots_of_all_ranks() -> None:
    it = geometry(disk={"path": "/var/kvpool", "size": "1Gi"})
    assert it.disk_slots * it.row_bytes * 2 <= 1 << 30
    assert (it.disk_slots + 1) * it.row_bytes * 2 > 1 << 30
    assert geometry().disk_slots == 0


@pytest.mark.parametrize(
    ("tiers", "named"),
    [
        ({"cpu": {"size": "16Mi"}}, "tiers.cpu.size: 16 MiB is too small: 4 chunks of"),
        ({"disk": {"path": "/var/kvpool", "size": "4Mi"}}, "tiers.disk.size: 4 MiB is too small: 1 chunks of"),
    ],
)
def test_too_small(tiers: dict[str, Any], named: str) -> None:
    """The message says what to change, and to how much."""
    large = dataclasses.replace(BLOCKS, nbytes=2 << 20)
    with pytest.raises(ConfigError, match=r"2 ranks need [\d.]+ MiB$") as error:
        geometry(large, **{"cpu": {"size": "1Gi"}} | tiers)
    assert str(error.value).startswith(named)


def test_part_names_tell_ranks_and_identities_apart() -> None:
    it = geometry()
    other = dataclasses.replace(it, identity="4567")
    assert len({it.part_name(0, b"key1"), it.part_name(1, b"key1"), other.part_name(0, b"key1")}) == 3
