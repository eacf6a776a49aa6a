"""The pool's counters and gauges as vLLM's statistics: they leave through the engine's own ``/metrics``.

Names begin with ``kvpool:``; counters get ``_total`` behind them from the Prometheus client.
"""

from __future__ import annotations

import dataclasses
import re

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata, OffloadingMetricMetadata

from kvpool_connector.scheduler.pool import Pool
from kvpool_connector.transfer import Tier

LOADED = "kvpool:loaded_chunks"
WRITTEN = "kvpool:written_chunks"
STORED = "kvpool:stored_chunks"
MISMATCH = "kvpool:verification_mismatches"
EVENTS = "kvpool:events"
RESIDENT = "kvpool:resident_chunks"
CAPACITY = "kvpool:capacity_chunks"
PINNED = "kvpool:pinned_chunks"
BROKEN = "kvpool:broken"
ANSWERS = {Tier.DISK: "kvpool:disk_answers", Tier.REMOTE: "kvpool:store_reachable"}
CHUNK_TOKENS = "kvpool:chunk_tokens"
CHUNK_PARTS = "kvpool:chunk_parts"
IDENTITY = "kvpool:identity_info"
_ADMISSION = {
    "prefill_tokens_per_second": "Prompt tokens that a forward pass of this engine computes in a second.",
    "decode_step_seconds": "How long a forward pass takes that only decodes.",
    "read_bytes_per_second": "Measured read rate of a tier per rank.",
    "chunk_compute_seconds": "How long computing a chunk takes: one side of the admission decision.",
    "chunk_load_seconds": "How long reading a chunk from a tier takes: the other side of the admission decision.",
    "load_queue_chunks": "Chunks that a tier has still to deliver for loads that were begun.",
    "admitted": "1 while hits of a tier are loaded, 0 while computing is faster.",
}

DEFINITIONS: dict[str, OffloadingMetricMetadata] = {
    LOADED: OffloadingCounterMetadata("Chunks whose load was begun, by the tier that holds them.", ("tier",)),
    STORED: OffloadingCounterMetadata("Chunks that were stored into the memory tier."),
    WRITTEN: OffloadingCounterMetadata("Chunks that were written to a lower tier.", ("tier",)),
    MISMATCH: OffloadingCounterMetadata("Recomputed chunks that differ from the cached ones. Alert on any."),
    EVENTS: OffloadingCounterMetadata("What else happened to parts: reads, writes, failures, by kind.", ("event",)),
    RESIDENT: OffloadingGaugeMetadata("Chunks that a tier of this engine holds.", ("tier",)),
    CAPACITY: OffloadingGaugeMetadata("Chunks that a tier of this engine can hold.", ("tier",)),
    PINNED: OffloadingGaugeMetadata("Chunks in memory that are being written to lower tiers."),
    BROKEN: OffloadingGaugeMetadata("1 while nothing is loaded or stored because of a fault. Alert on it."),
    ANSWERS[Tier.REMOTE]: OffloadingGaugeMetadata("1 while the remote store answers."),
    ANSWERS[Tier.DISK]: OffloadingGaugeMetadata(
        "1 while the disk tier answers, 0 while a call to some rank's disk hangs."
    ),
    CHUNK_TOKENS: OffloadingGaugeMetadata("Tokens of a chunk: hits are counted in whole chunks."),
    CHUNK_PARTS: OffloadingGaugeMetadata("Parts of a chunk in a shared store, over all KV groups and ranks."),
    IDENTITY: OffloadingGaugeMetadata("Always 1. Engines whose digests differ share nothing.", ("digest",)),
} | {f"kvpool:{name}": OffloadingGaugeMetadata(text, ("tier",)) for name, text in _ADMISSION.items()}

_COUNTERS = (
    (re.compile(r"chunks loaded from (\w+)"), LOADED),
    (re.compile(r"(disk|remote) written"), WRITTEN),
    (re.compile(r"chunks stored()"), STORED),
    (re.compile(r"verification mismatch()"), MISMATCH),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What stays the same while an engine lives: how it cuts prompts into chunks, and with whom it can share them."""

    chunk_tokens: int
    chunk_parts: int
    identity: str


def collect(pool: Pool, shape: Shape, stats: OffloadingConnectorStats) -> OffloadingConnectorStats:
    """Move what the pool counted into vLLM's form, and add the gauges of the pool and of the engine's shape."""
    stats.set_gauge(CHUNK_TOKENS, shape.chunk_tokens)
    stats.set_gauge(CHUNK_PARTS, shape.chunk_parts)
    stats.set_gauge(IDENTITY, 1, (shape.identity,))
    for what, number in pool.take_counts().items():
        name, labels = _name(what)
        stats.increase_counter(name, number, labels)
    stats.set_gauge(RESIDENT, len(pool.index), ("memory",))
    stats.set_gauge(CAPACITY, pool.index.slots, ("memory",))
    for lower in pool.secondaries:
        stats.set_gauge(ANSWERS[lower.tier], float(lower.usable))
        if lower.slots:
            stats.set_gauge(RESIDENT, len(lower), (lower.tier.value,))
            stats.set_gauge(CAPACITY, lower.slots, (lower.tier.value,))
    stats.set_gauge(PINNED, pool.spills.pinned)
    stats.set_gauge(BROKEN, float(bool(pool.broken)))
    for (figure, tier), value in pool.admission.figures().items():
        stats.set_gauge(f"kvpool:{figure}", value, ("" if tier is None else tier.value,))
    for tier in (Tier.DISK, Tier.REMOTE):  # also when it is empty, or a reset would leave its last length standing
        stats.set_gauge("kvpool:load_queue_chunks", pool.queued(tier), (tier.value,))
    return stats


def _name(what: str) -> tuple[str, tuple[str, ...]]:
    for pattern, name in _COUNTERS:
        if (found := pattern.fullmatch(what)) is not None:
            return name, tuple(filter(None, found.groups()))
    return EVENTS, (what,)
