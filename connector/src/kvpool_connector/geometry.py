"""The sizes of one engine's cache, the same in the scheduler's process and in every rank's.

vLLM divides the tokens of each KV group into blocks, and kvpool puts blocks together to chunks. A
rank's part of a chunk of one group lies in a row: of the arena in memory, or of the slab on disk.
"""

from __future__ import annotations

import dataclasses
import math

from kvpool_connector.config import ConfigError, ConnectorConfig, format_bytes
from kvpool_connector.format import part_name
from kvpool_connector.stores.caller import rows_of_call
from kvpool_connector.stores.factory import most_lent
from kvpool_connector.tiers.arena import row_bytes_for

SPARE_ROWS = 2
"""Rows of an arena beyond the slots: for comparisons and for probes. Like those that a store or a
disk may lend, they are part of the tier's byte budget."""


@dataclasses.dataclass(frozen=True, slots=True)
class Blocks:
    """What vLLM says about the blocks of an engine."""

    world_size: int
    """Ranks, each of which holds a part of every block."""
    tokens: tuple[int, ...]
    """Tokens of a block, for each KV group."""
    nbytes: int
    """Bytes of a block of the largest KV group on one rank."""
    per_chunk: int
    """Blocks of one chunk."""


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """See the module's text."""

    identity: str
    """The digest of everything that decides whether two engines compute the same bytes."""
    blocks: Blocks
    row_bytes: int
    slots: int
    """Chunks that a rank's arena holds."""
    disk_slots: int
    """Chunks that a rank's slab holds; 0 without a disk tier."""
    store_lends: int
    """Rows that a call to the store which was given up may still use."""
    disk_lends: int
    """Rows that a call to the disk which was given up may still fill."""

    @property
    def arena_rows(self) -> int:
        """Return how many rows a rank's arena has."""
        return self.slots + SPARE_ROWS + self.store_lends + self.disk_lends

    @property
    def chunk_bytes(self) -> int:
        """Return the bytes of a rank's part of a chunk."""
        return self.blocks.nbytes * self.blocks.per_chunk

    @property
    def group_tokens(self) -> int:
        """Return the tokens of a chunk in the KV group with the smallest blocks."""
        return min(self.blocks.tokens) * self.blocks.per_chunk

    @property
    def chunk_tokens(self) -> int:
        """Return the smallest number of tokens that is whole chunks in every KV group: what is cached
        of a prompt is a multiple of it."""
        return math.lcm(*self.blocks.tokens) * self.blocks.per_chunk

    @property
    def chunk_parts(self) -> int:
        """Return how many parts ``chunk_tokens`` tokens have in a store, of all KV groups and ranks."""
        of_a_rank = sum(self.chunk_tokens // (tokens * self.blocks.per_chunk) for tokens in self.blocks.tokens)
        return self.blocks.world_size * of_a_rank

    def part_name(self, rank: int, key: bytes) -> bytes:
        """Return the name of a rank's part of a key."""
        return part_name(self.identity, rank, key)


def geometry_of(identity: str, blocks: Blocks, config: ConnectorConfig) -> Geometry:
    """Return the sizes that the configured bytes allow.

    Raises:
        ConfigError: a tier is too small; the message names the setting to change.
    """
    row_bytes = row_bytes_for(blocks.nbytes * blocks.per_chunk)
    disk = config.tiers.disk
    least_rows = SPARE_ROWS + 2 + (disk is not None)
    rows = _rows_of("tiers.cpu.size", config.tiers.cpu.size, least_rows, row_bytes, blocks.world_size)
    store_lends = most_lent(config.remote, row_bytes, rows)
    disk_lends = 0 if disk is None else rows_of_call(row_bytes, rows)
    return Geometry(
        identity=identity,
        blocks=blocks,
        row_bytes=row_bytes,
        slots=rows - SPARE_ROWS - store_lends - disk_lends,
        disk_slots=0 if disk is None else _rows_of("tiers.disk.size", disk.size, 1, row_bytes, blocks.world_size),
        store_lends=store_lends,
        disk_lends=disk_lends,
    )


def _rows_of(field: str, size: int, least: int, row_bytes: int, world_size: int) -> int:
    rows = size // world_size // row_bytes
    if rows < least:
        raise ConfigError(
            f"{field}: {format_bytes(size)} is too small: {least} chunks of {format_bytes(row_bytes)} on each of "
            f"{world_size} ranks need {format_bytes(least * row_bytes * world_size)}"
        )
    return rows
