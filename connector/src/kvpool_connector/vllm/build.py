"""Puts the scheduler's half together out of a spec."""

from __future__ import annotations

from pathlib import Path

from kvpool_connector.config.model import DiskTier
from kvpool_connector.identity import canonical, document_name
from kvpool_connector.log import get_logger
from kvpool_connector.scheduler.admission import Admission
from kvpool_connector.scheduler.events import Events
from kvpool_connector.scheduler.pool import FETCH_S, Pool
from kvpool_connector.scheduler.presence import ABSENT_S, AWAITED_S, Presence
from kvpool_connector.scheduler.secondary.base import Secondary
from kvpool_connector.scheduler.secondary.disk import DiskIndex
from kvpool_connector.scheduler.secondary.remote import RemoteIndex
from kvpool_connector.scheduler.verify import Verification
from kvpool_connector.stores import Breaker, Memory
from kvpool_connector.tiers.journal import Journal
from kvpool_connector.tiers.policy import make_policy
from kvpool_connector.tiers.slots import SlotIndex
from kvpool_connector.tiers.starting import started
from kvpool_connector.vllm.handover import Role
from kvpool_connector.vllm.manager import KVPoolManager
from kvpool_connector.vllm.spec import KVPoolSpec

logger = get_logger(__name__)


def make_manager(spec: KVPoolSpec) -> KVPoolManager:
    """Return the scheduler's half of an engine.

    Raises:
        ConfigError: the disk tier's folder cannot be used.
    """
    remote = spec.settings.remote
    handover_s = 0.0 if remote is None else remote.timeouts.handover_ms / 1000
    answer_s = 0.0 if remote is None else remote.timeouts.lookup_ms / 1000
    manager = KVPoolManager(
        build_pool(spec),
        spec.geometry,
        spec.role,
        handover_s=handover_s,
        answer_s=answer_s + (handover_s if spec.role is Role.CONSUMER else 0.0),
    )
    logger.info("kvpool: %s", spec.describe())
    return manager


def build_pool(spec: KVPoolSpec) -> Pool:
    """The pool of the spec's tiers, with their threads running.

    Raises:
        ConfigError: the disk tier's folder cannot be used.
    """
    settings, remote = spec.settings, spec.settings.remote
    world_size = spec.config.parallel.world_size
    geometry = spec.geometry
    admission = Admission(geometry.chunk_bytes, geometry.group_tokens, enabled=settings.admission == "measured")
    index = SlotIndex(geometry.slots, make_policy(settings.tiers.cpu.eviction_policy))
    secondaries: list[Secondary] = []
    if settings.tiers.disk is not None:
        secondaries.append(_disk(spec, settings.tiers.disk))
    if remote is not None:
        secondaries.append(RemoteIndex(_presence(spec, world_size, admission), index, remote.write_policy))
    return Pool(
        index,
        world_size,
        secondaries,
        admission,
        Events(enabled=spec.config.enable_kv_cache_events),
        # What is computed is compared when it is stored, which a decode engine never does.
        None if settings.verify_one_in is None or not spec.role.stores else Verification(settings.verify_one_in),
        fetch_s=FETCH_S if remote is None else remote.timeouts.fetch_ms / 1000,
    )


def _disk(spec: KVPoolSpec, tier: DiskTier) -> DiskIndex:
    geometry = spec.geometry
    index = SlotIndex(geometry.disk_slots, make_policy(tier.eviction_policy))
    folder = Path(tier.path)
    journal = started(
        folder,
        lambda beat: Journal(folder, geometry.disk_slots, geometry.row_bytes, geometry.identity, beat),
        discard=lambda late: late.close(),
    )
    return DiskIndex(index, journal, tier.write_policy)


def _presence(spec: KVPoolSpec, world_size: int, admission: Admission) -> Presence:
    assert spec.settings.remote is not None
    timeouts, document = spec.settings.remote.timeouts, Memory.holding(canonical(spec.document))
    return Presence(
        spec.connect(Breaker(), document),
        names=lambda key: [spec.geometry.part_name(rank, key) for rank in range(world_size)],
        timeout_s=lambda questions: admission.lookup_patience_s(questions, timeouts.lookup_ms / 1000),
        patience_s=timeouts.connect_ms / 1000,
        greeting=(document_name(spec.geometry.identity), document.view),
        absent_s=AWAITED_S if spec.role is Role.CONSUMER else ABSENT_S,
    )
