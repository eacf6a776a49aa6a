"""Byte for byte: what a load puts into KV memory equals what the model had computed there.

The KV tensors are overwritten with a pattern in between, so a load that does nothing cannot pass. Greedy text is compared, too,
but alone it is a weak check: text of so small a model survives much.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig

from kvpool_connector.transfer import Kind, Transfer
from kvpool_connector.vllm.manager import KVPoolManager
from kvpool_connector.vllm.worker import KVPoolWorker
from kvpool_connector.worker.device.base import Block
from kvpool_connector.worker.device.cpu import CpuDevice
from testkit.servers import KeyValueServer, wait_until

pytestmark = pytest.mark.timeout(300)

PATTERN = 0xA5
WORDS = "the lighthouse keeper wrote in his journal every evening about wind tides ships gulls rain lamps and letters"


def prompt(number: int, words: int = 700) -> str:
    """The same text in every run."""
    source, choice = random.Random(number), WORDS.split()
    return f"Document {number}. " + " ".join(source.choice(choice) for _ in range(words))


@dataclasses.dataclass
class Engine:
    """An engine with its connector's halves at hand, and a record of the jobs that its worker was given."""

    llm: LLM
    worker: KVPoolWorker
    manager: KVPoolManager
    jobs: list[tuple[Transfer, list[Block]]]

    def generate(self, text: str, tokens: int = 8) -> tuple[str, int]:
        """Greedy text, and how many prompt tokens came from a cache."""
        (output,) = self.llm.generate([text], SamplingParams(max_tokens=tokens, temperature=0), use_tqdm=False)
        return output.outputs[0].text, output.num_cached_tokens or 0

    def settle(self) -> None:
        """Stores and puts ended and were reported. In one process nothing steps an idle engine, so a short request does."""
        self.generate("settle", tokens=4)
        wait_until("the mover is idle", lambda: self.worker.mover.idle)
        self.generate("settle again", tokens=4)
        assert not self.manager.pool.busy

    def blocks(self, kind: Kind) -> dict[bytes, Block]:
        """Where the blocks of the recorded jobs lie in KV memory."""
        return {
            key: block
            for transfer, blocks in self.jobs if transfer.kind is kind
            for key, block in zip(transfer.keys, blocks, strict=True)
        }  # fmt: skip

    @property
    def _pages(self) -> Any:
        device = self.worker.mover._device
        assert isinstance(device, CpuDevice)
        return device._pages

    def bytes_of(self, block: Block) -> bytes:
        """A block's bytes in KV memory."""
        group, number = block
        return b"".join(view[number, :size].tobytes() for view, size in self._pages[group])

    def overwrite(self) -> None:
        """Every byte of KV memory is the pattern."""
        for pages in self._pages:
            for view, _ in pages:
                view[:] = PATTERN

    def forget(self, *, tiers: bool = False) -> None:
        """Reset vLLM's own prefix cache, and the memory tier if asked for."""
        assert self.llm.reset_prefix_cache(reset_connector=tiers)
        self.jobs.clear()


@pytest.fixture(scope="module")
def engine(model: Path, store: KeyValueServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Full attention, float32, memory tier and Redis."""
    password = tmp_path_factory.mktemp("secret") / "password"
    password.write_text(f"{store.password}\n")
    llm = LLM(
        str(model), max_model_len=4096, enforce_eager=True, dtype="float32", disable_log_stats=True, seed=0,
        kv_transfer_config=KVTransferConfig(
            kv_connector="KVPoolConnector", kv_connector_module_path="kvpool_connector.vllm", kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config={"kvpool": {
                "tiers": {"cpu": {"size": "256Mi"}},
                "remote": {"type": "redis", "host": store.host, "port": store.port, "password_file": str(password),
                           "timeouts": {"lookup_ms": 2000}},
            }},
        ),
    )  # fmt: skip
    worker = KVPoolWorker.live
    assert worker is not None
    manager = next(o for o in _reachable(llm) if isinstance(o, KVPoolManager))
    jobs: list[tuple[Transfer, list[Block]]] = []
    start = worker.mover._start

    def record(job_id: int, transfer: Transfer, blocks: list[Block]) -> Any:
        jobs.append((transfer, blocks))
        return start(job_id, transfer, blocks)

    worker.mover._start = record  # type: ignore[method-assign, assignment]
    yield Engine(llm, worker, manager, jobs)
    llm.llm_engine.engine_core.shutdown()
    assert KVPoolWorker.live is None


def _reachable(llm: LLM) -> Iterator[object]:
    core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
    yield core.scheduler.connector.connector_scheduler.manager


def test_loads_from_memory_and_from_redis_are_byte_exact(engine: Engine, store: KeyValueServer) -> None:
    """Cold; from the memory tier; from Redis after the tier was emptied. KV memory is overwritten each time."""
    engine.forget(tiers=True)
    text, cached = engine.generate(prompt(1))
    assert cached == 0
    engine.settle()
    stored = engine.blocks(Kind.STORE)
    snapshot = {key: engine.bytes_of(block) for key, block in stored.items()}
    assert len(snapshot) >= 5

    for tiers, source in ((False, "memory"), (True, "redis")):
        engine.forget(tiers=tiers)
        engine.overwrite()
        assert all(set(engine.bytes_of(block)) == {PATTERN} for block in stored.values())
        warm_text, warm_cached = engine.generate(prompt(1))
        loads = [transfer for transfer, _ in engine.jobs if transfer.kind is Kind.LOAD]
        assert all(any(load.fetch) == (source == "redis") for load in loads), source
        loaded = {key: engine.bytes_of(block) for key, block in engine.blocks(Kind.LOAD).items()}
        assert loaded.keys() <= snapshot.keys()
        assert warm_cached == len(loaded) * 128
        assert len(loaded) >= 5
        different = [key.hex() for key, data in loaded.items() if data != snapshot[key]]
        assert not different, source
        assert warm_text == text, source


def test_a_flipped_bit_in_memory_is_a_miss(engine: Engine) -> None:
    """The checksum turns it into a failed load, and that into computing; the block is stored again afterwards."""
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(2))
    engine.settle()
    whole = len(engine.blocks(Kind.STORE))
    engine.forget()
    engine.worker.mover._arena._rows[:, 5000] ^= 1
    before = engine.worker.mover.outcomes["load damaged"]
    again, cached = engine.generate(prompt(2))
    assert again == text
    assert cached == 0 or engine.worker.mover.outcomes["get hit"] > 0  # computed, or fetched from Redis instead
    assert engine.worker.mover.outcomes["load damaged"] - before == whole
    engine.settle()
    engine.forget()
    assert engine.generate(prompt(2)) == (text, whole * 128)


def test_a_damaged_part_in_redis_is_a_miss_and_is_replaced(engine: Engine, store: KeyValueServer) -> None:
    """Part of the prompt is computed; the damaged part is removed and put again, so the next reader hits."""
    client = redis.Redis(port=store.port, password=store.password)
    client.flushall()
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(3))
    engine.settle()
    keys = list(client.scan_iter("kvpool:1:*", count=1000))
    assert len(keys) == len(engine.blocks(Kind.STORE)) > 3
    client.setrange(keys[1], 70_000, "damaged")

    engine.forget(tiers=True)
    again, cached = engine.generate(prompt(3))
    assert again == text
    assert cached < len(keys) * 128
    engine.settle()
    engine.forget(tiers=True)
    assert engine.generate(prompt(3)) == (text, len(keys) * 128)
    client.close()


def test_redis_lost_and_back(engine: Engine, store: KeyValueServer) -> None:
    """Lost: the same text, no error. Back and empty: blocks that are still in memory reach it again when they are used."""
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(4))
    engine.settle()
    whole = len(engine.blocks(Kind.STORE))
    store.kill()
    wait_until("the loss is noticed", lambda: not engine.manager.pool._presence.reachable)  # type: ignore[union-attr]
    engine.forget()
    assert engine.generate(prompt(4)) == (text, whole * 128)  # from memory
    engine.settle()

    store.start()
    wait_until("its return is noticed", lambda: engine.manager.pool._presence.reachable)  # type: ignore[union-attr]
    engine.generate(prompt(4))
    engine.settle()
    with redis.Redis(port=store.port, password=store.password) as client:
        assert len(client.keys("kvpool:1:*")) == whole
    engine.forget(tiers=True)
    assert engine.generate(prompt(4)) == (text, whole * 128)  # from Redis


def test_a_second_registration_is_refused(engine: Engine) -> None:
    """vLLM keeps one worker connector per process: a second engine would copy from the first one's memory."""
    with pytest.raises(RuntimeError, match="process of its own"):
        KVPoolWorker(None, None)  # type: ignore[arg-type]


def test_nothing_is_left(engine: Engine) -> None:
    """After all of the above: no reference, no promise, no ticket, no queued put."""
    engine.settle()
    pool = engine.manager.pool
    assert not pool._running
    assert not pool._draining
    assert not pool._load_of
    assert all(entry.refs == 0 and not entry.held for _, entry in pool.index)
    assert pool.index.free + len(pool.index) == pool.index.slots
    assert np.all(engine.worker.mover.idle)
