"""Damaged parts, a lost store and a second engine in one process: right text, and what was lost is stored again.

That loads are byte-exact is shown in test_texts.py and test_layouts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from connector.tests.engine.harness import Engine, prompt, remote, running
from kvpool_connector.transfer import Kind
from kvpool_connector.vllm.worker import KVPoolWorker, make_worker
from testkit.servers import KeyValueServer, wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def engine(model: Path, store: KeyValueServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Full attention, float32, memory tier and Redis."""
    kvpool = {"tiers": {"cpu": {"size": "256Mi"}}, "remote": remote(store, tmp_path_factory.mktemp("secret"))}
    with running(str(model), kvpool) as engine:
        yield engine


def test_a_flipped_bit_in_memory_is_a_miss(engine: Engine) -> None:
    """The checksum turns it into a failed load, and that into computing; the block is stored again afterwards."""
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(2))
    engine.settle()
    whole = len(engine.chunks(Kind.STORE))
    engine.forget()
    engine.mover._rows.arena._rows[:, 5000] ^= 1
    before = engine.mover.outbox.outcomes["load damaged"]
    again, cached = engine.generate(prompt(2))
    assert again == text
    assert cached == 0 or engine.mover.outbox.outcomes["get hit"] > 0  # computed, or fetched from Redis instead
    assert engine.mover.outbox.outcomes["load damaged"] - before == whole
    engine.settle()
    engine.forget()
    assert engine.generate(prompt(2)) == (text, whole * engine.chunk_tokens)


def test_a_damaged_part_in_redis_is_a_miss_and_is_replaced(engine: Engine, store: KeyValueServer) -> None:
    """Part of the prompt is computed; the damaged part is removed and put again, so the next reader hits."""
    client = redis.Redis(port=store.port, password=store.password)
    client.flushall()
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(3))
    engine.settle()
    keys = list(client.scan_iter("kvpool:1:*", count=1000))
    assert len(keys) == len(engine.chunks(Kind.STORE)) > 3
    client.setrange(keys[1], 70_000, "damaged")

    engine.forget(tiers=True)
    again, cached = engine.generate(prompt(3))
    assert again == text
    assert cached < len(keys) * engine.chunk_tokens
    engine.settle()
    engine.forget(tiers=True)
    assert engine.generate(prompt(3)) == (text, len(keys) * engine.chunk_tokens)
    client.close()


def test_redis_lost_and_back(engine: Engine, store: KeyValueServer) -> None:
    """Lost: the same text, no error. Back and empty: blocks that are still in memory reach it again when they are used."""
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(4))
    engine.settle()
    whole = len(engine.chunks(Kind.STORE))
    store.kill()
    wait_until("the loss is noticed", lambda: engine.manager.pool.store_reachable is False)
    engine.forget()
    assert engine.generate(prompt(4)) == (text, whole * engine.chunk_tokens)  # from memory
    engine.settle()

    store.start()
    wait_until("its return is noticed", lambda: engine.manager.pool.store_reachable is True)
    engine.generate(prompt(4))
    engine.settle()
    with redis.Redis(port=store.port, password=store.password) as client:
        assert len(client.keys("kvpool:1:*")) == whole
    engine.forget(tiers=True)
    assert engine.generate(prompt(4)) == (text, whole * engine.chunk_tokens)  # from Redis


def test_a_second_registration_is_refused(engine: Engine) -> None:
    """vLLM keeps one worker connector per process: a second engine would copy from the first one's memory."""
    with pytest.raises(RuntimeError, match="process of its own"):
        make_worker(None, None)  # type: ignore[arg-type]
    assert KVPoolWorker.live is engine.worker


def test_nothing_is_left(engine: Engine) -> None:
    """After all of the above: no reference, no promise, no ticket, no queued write."""
    engine.assert_nothing_is_left()
