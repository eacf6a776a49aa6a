"""What others can see of the tiers: verification by recomputation, KV events, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.config import KVEventsConfig
from vllm.distributed.kv_events import BlockRemoved, BlockStored
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats

from connector.tests.engine.harness import Engine, prompt, running
from kvpool_connector.transfer import Kind
from kvpool_connector.vllm.metrics import BROKEN, DEFINITIONS, MISMATCH, STORED

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Memory and disk, every hit verified, events on."""
    disk = {"path": str(tmp_path_factory.mktemp("disk")), "size": "256Mi"}
    kvpool = {"tiers": {"cpu": {"size": "256Mi"}, "disk": disk}, "verify_one_in": 1}
    events = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
    with running(str(model), kvpool, kv_events_config=events) as started:
        yield started


def _recorded(engine: Engine) -> list[BlockStored | BlockRemoved]:
    """A list that gets every event which vLLM takes from now on, as its publisher would."""
    core = engine.llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
    connector, seen = core.scheduler.connector, []
    take = connector.take_events

    def take_events() -> list[BlockStored | BlockRemoved]:
        taken = list(take())
        seen.extend(taken)
        return taken

    connector.take_events = take_events
    return seen


def _published(engine: Engine) -> list[OffloadingConnectorStats]:
    """A list that gets all statistics which vLLM takes from now on, as its loggers would."""
    manager, seen = engine.manager, []
    take = manager.get_stats

    def get_stats() -> OffloadingConnectorStats | None:
        stats = take()
        if stats is not None:
            seen.append(stats)
        return stats

    manager.get_stats = get_stats  # type: ignore[method-assign]
    return seen


def test_a_verified_hit_is_computed_and_compared(engine: Engine) -> None:
    """What is cached is what is computed, so nothing happens but the work."""
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(1))
    engine.settle()
    whole = len(engine.chunks(Kind.STORE))
    engine.forget()
    before = engine.mover.outbox.outcomes["verified"]
    assert engine.generate(prompt(1)) == (text, 0)
    engine.settle()
    assert engine.mover.outbox.outcomes["verified"] - before == whole
    assert not engine.manager.pool.broken
    engine.assert_nothing_is_left()


def test_a_wrong_block_with_a_right_checksum_closes_the_pool(engine: Engine) -> None:
    """The fault that no checksum sees. Nothing is loaded from then on, the metric says so, and a reset starts anew."""
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(2))
    engine.settle()
    pool, mover = engine.manager.pool, engine.mover
    key, slot = max(pool.index, key=lambda pair: pair[1])
    mover._rows.payload(key, slot).view("float32")[::7] += 0.5
    mover._rows.seal(key, slot)

    engine.forget()
    seen = _published(engine)
    assert engine.generate(prompt(2)) == (text, 0)
    engine.settle()
    assert "verification" in pool.broken
    assert sum(stats.reduce().get(MISMATCH, 0) for stats in seen) == 1
    assert seen[-1].reduce()[BROKEN] == 1
    engine.forget()
    assert engine.generate(prompt(2)) == (text, 0)
    assert not engine.loads()

    engine.forget(tiers=True)
    assert not pool.broken
    assert engine.generate(prompt(2)) == (text, 0)
    engine.settle()
    assert engine.chunks(Kind.STORE)


def test_events_name_the_tier(engine: Engine) -> None:
    """Stored in memory, then on disk; removed from both by a reset."""
    engine.forget(tiers=True)
    engine.settle()
    seen = _recorded(engine)
    engine.generate(prompt(3))
    whole = len(engine.chunks(Kind.STORE))
    engine.settle()
    media = [event.medium for event in seen if isinstance(event, BlockStored) for _ in event.block_hashes]
    assert media.count("CPU") >= whole
    assert media.count("STORAGE") >= whole
    seen.clear()
    engine.forget(tiers=True)
    engine.settle()
    assert {event.medium for event in seen if isinstance(event, BlockRemoved)} == {"CPU", "STORAGE"}


def test_metrics_are_declared(engine: Engine) -> None:
    """vLLM's front end asserts that it knows each name and the number of its labels."""
    seen = _published(engine)
    engine.generate(prompt(6))
    engine.settle()
    assert not engine.manager.pool.counted, "a counter waits for the next request"
    assert sum(stats.reduce().get(STORED, 0) for stats in seen) > 0
    for stats in seen:
        for name, values in stats._values.items():
            assert name in DEFINITIONS
            assert all(len(labels) == len(DEFINITIONS[name].labelnames) for labels in values)
