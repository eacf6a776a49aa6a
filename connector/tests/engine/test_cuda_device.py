"""The GPU's device, on host memory: bytes in every layout, order, completion, registration. See `host_cuda` for the stand-in.

The KV memory is vLLM's in shape (`layouts`). Payloads are compared with vLLM's canonical tensors, and what the model's layers
see with what they saw before.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from vllm import _custom_ops

from connector.tests.engine.host_cuda import HostCuda, Range, Stream
from connector.tests.engine.layouts import BLOCKS, LAYOUTS, NAMES, Memory, memory
from kvpool_connector.format import HEADER_BYTES
from kvpool_connector.tiers.arena import Arena, row_bytes_for
from kvpool_connector.vllm.worker import make_device, pages_of
from kvpool_connector.worker.device import cuda
from kvpool_connector.worker.device.base import Chunk, Row
from kvpool_connector.worker.device.cuda import CudaDevice
from testkit.patience import PATIENCE_S

PER_CHUNK = 4
SEEDS = 25
FULL = "full attention"


class Bench:
    """A device over some KV memory and an arena."""

    def __init__(self, driver: HostCuda, name: str, slots: int = 8) -> None:
        self.driver, self.memory = driver, memory(name)
        raw = self.memory.raw
        driver.device_memory.append(Range(raw.ctypes.data, raw.ctypes.data + raw.size))
        self.device = CudaDevice(pages_of(self.memory.canonical), torch.device("cpu"))
        self.arena = Arena(slots, row_bytes_for(max(self.device.block_bytes) * PER_CHUNK))

    def fill(self, seed: int) -> None:
        """Other bytes everywhere in KV memory."""
        self.memory.raw[:] = np.random.default_rng(seed).integers(0, 256, self.memory.raw.size, np.uint8)

    def rows(self, chunks: Sequence[Chunk]) -> list[Row]:
        """A row for each."""
        sizes = [self.device.block_bytes[chunk.group] * PER_CHUNK for chunk in chunks]
        return [self.arena.payload(slot, size) for slot, size in enumerate(sizes)]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """The stand-in, installed."""
    driver = HostCuda()
    driver.install(monkeypatch)
    return driver


def expected(memory: Memory, chunk: Chunk, size: int, row: bytes) -> bytes:
    """A row after a store of the chunk, ``size`` being a block's bytes."""
    blocks = b"".join(memory.payload(chunk.group, block) for block in chunk.blocks)
    at = chunk.first * size
    return row[:at] + blocks + row[at + len(blocks) :]


def batch(source: random.Random, groups: int) -> list[Chunk]:
    """Chunks of distinct blocks: a block belongs to one group and one request at a time. Every other batch has runs of them,
    as vLLM hands them out at first."""
    blocks = list(range(BLOCKS))
    if source.random() < 0.5:
        source.shuffle(blocks)
    chunks = []
    for _ in range(source.randint(0, 6)):
        first = source.randrange(PER_CHUNK)
        count = source.randint(1, PER_CHUNK - first)
        chunks.append(Chunk(source.randrange(groups), first, tuple(blocks[:count])))
        blocks = blocks[count:]
    return chunks


# ---- bytes


@pytest.mark.parametrize("name", NAMES)
def test_a_store_fills_the_rows_and_nothing_else(name: str, driver: HostCuda) -> None:
    """Partial chunks leave the rest of their row; KV memory stays; the CPU's device fills them alike."""
    bench = Bench(driver, name)
    bench.fill(1)
    kv, arena, on_cpu = bench.memory.raw.copy(), bench.arena._rows, make_device(bench.memory.canonical)
    for seed in range(SEEDS):
        chunks = batch(random.Random(seed), len(bench.device.block_bytes))
        rows = bench.rows(chunks)
        arena[:] = 0xEE
        wanted = arena.copy()
        for slot, (chunk, row) in enumerate(zip(chunks, rows, strict=True)):
            filled = expected(bench.memory, chunk, bench.device.block_bytes[chunk.group], row.tobytes())
            wanted[slot, HEADER_BYTES : HEADER_BYTES + len(filled)] = np.frombuffer(filled, np.uint8)
        for device in (bench.device, on_cpu):
            arena[:] = 0xEE
            device.copy_out(chunks, rows, device.fence())
            assert np.array_equal(arena, wanted), chunks
            assert np.array_equal(bench.memory.raw, kv), chunks


@pytest.mark.parametrize("name", NAMES)
def test_a_load_fills_the_blocks_and_nothing_else(name: str, driver: HostCuda) -> None:
    """Padding, other blocks, other groups' blocks and the rows stay; the CPU's device fills them alike."""
    bench = Bench(driver, name)
    bench.arena._rows[:] = np.random.default_rng(2).integers(0, 256, bench.arena._rows.shape, np.uint8)
    arena, on_cpu = bench.arena._rows.copy(), make_device(bench.memory.canonical)
    for seed in range(SEEDS):
        chunks = batch(random.Random(seed), len(bench.device.block_bytes))
        rows = bench.rows(chunks)
        bench.fill(3)
        for chunk, row in zip(chunks, rows, strict=True):
            size = bench.device.block_bytes[chunk.group]
            for place, block in enumerate(chunk.blocks, chunk.first):
                bench.memory.write(chunk.group, block, row[place * size : (place + 1) * size].tobytes())
        wanted = bench.memory.raw.copy()
        for device in (bench.device, on_cpu):
            bench.fill(3)
            device.copy_in(rows, chunks, device.fence())
            assert np.array_equal(bench.memory.raw, wanted), chunks
            assert np.array_equal(bench.arena._rows, arena), chunks


@pytest.mark.parametrize("name", LAYOUTS)
def test_layers_see_what_they_saw(name: str, driver: HostCuda) -> None:
    """Through the views that the model's layers read: out of some blocks, into others."""
    bench = Bench(driver, name)
    for group in range(len(bench.device.block_bytes)):
        bench.fill(group)
        out, into = Chunk(group, 1, (5, 6, 2)), Chunk(group, 1, (20, 9, 10))
        seen = [bench.memory.block(group, block) for block in out.blocks]
        rows = bench.rows([out])
        bench.device.copy_out([out], rows, bench.device.fence())
        bench.fill(100 + group)
        bench.device.copy_in(rows, [into], bench.device.fence())
        for block, views in zip(into.blocks, seen, strict=True):
            for now, before in zip(bench.memory.block(group, block), views, strict=True):
                assert torch.equal(now.view(torch.uint8), before.view(torch.uint8))


# ---- order and completion


def test_a_store_reads_after_the_work_before_its_fence(driver: HostCuda) -> None:
    """The forward pass that writes the blocks is queued and not begun. Work behind the fence is not waited for."""
    bench = Bench(driver, FULL)
    chunks = [Chunk(0, 0, (3, 4)), Chunk(0, 1, (8,))]
    rows = bench.rows(chunks)
    driver.compute.run(lambda: bench.fill(7))
    fence = bench.device.fence()
    driver.compute.run(lambda: bench.fill(8))
    bench.device.copy_out(chunks, rows, fence)
    assert driver.compute.finished == 1
    for chunk, row in zip(chunks, rows, strict=True):
        size = bench.device.block_bytes[0]
        got = row[chunk.first * size : (chunk.first + len(chunk.blocks)) * size].tobytes()
        assert got == b"".join(bench.memory.payload(0, block) for block in chunk.blocks)


def test_a_load_writes_after_the_zeroing_before_its_fence(driver: HostCuda) -> None:
    """Zeroing of newly allocated blocks is queued and not begun; it must not run over what was loaded."""
    bench = Bench(driver, FULL)
    chunks = [Chunk(0, 2, (3, 4))]
    rows = bench.rows(chunks)
    rows[0][:] = np.arange(len(rows[0]), dtype=np.uint64).astype(np.uint8)
    driver.compute.run(lambda: bench.memory.raw.fill(0))
    bench.device.copy_in(rows, chunks, bench.device.fence())
    driver.compute.synchronize()
    size = bench.device.block_bytes[0]
    for place, block in ((2, 3), (3, 4)):
        assert bench.memory.payload(0, block) == rows[0][place * size : (place + 1) * size].tobytes()


def test_a_refused_batch_has_ended_when_the_error_arrives(driver: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver took some copies, then said no: the caller may give the blocks to another request at once."""
    bench = Bench(driver, FULL)
    streams: list[Stream] = []

    def refuse(*arguments: Any, **flags: Any) -> None:
        driver.swap_blocks_batch(*arguments, **flags)
        streams.append(driver.current_stream())
        raise RuntimeError("invalid argument")

    monkeypatch.setattr(_custom_ops, "swap_blocks_batch", refuse)
    chunks = [Chunk(0, 0, (1,))]
    with pytest.raises(RuntimeError, match="invalid argument"):
        bench.device.copy_in(bench.rows(chunks), chunks, bench.device.fence())
    assert streams[0] is not driver.compute
    assert not streams[0].queue


def test_a_load_and_a_store_at_once(driver: HostCuda) -> None:
    """Both batches are queued before either runs; they run in turns, on streams of their own."""
    bench = Bench(driver, "full and sliding window groups over the same bytes")
    chunks = [Chunk(0, 0, (0, 1, 2, 3)), Chunk(1, 0, (4, 5)), Chunk(0, 1, (9, 8)), Chunk(2, 0, (7, 6, 10))]
    rows = bench.rows(chunks)
    bench.fill(5)
    for row in rows[2:]:
        row[:] = np.random.default_rng(6).integers(0, 256, len(row), np.uint8)
    both = threading.Barrier(2, timeout=20)
    driver.on_batch = lambda: (both.wait(), None)[1]
    fence = bench.device.fence()
    load = threading.Thread(target=bench.device.copy_in, args=(rows[2:], chunks[2:], fence))
    load.start()
    bench.device.copy_out(chunks[:2], rows[:2], fence)
    load.join()
    assert len(driver.batches) == 2
    for chunk, row in zip(chunks, rows, strict=True):
        size = bench.device.block_bytes[chunk.group]
        for place, block in enumerate(chunk.blocks, chunk.first):
            assert bench.memory.payload(chunk.group, block) == row[place * size : (place + 1) * size].tobytes()


def test_only_loads_let_the_driver_reorder_their_reads(driver: HostCuda) -> None:
    """A store reads memory that is written all the time."""
    bench = Bench(driver, "one layer")
    chunks = [Chunk(0, 0, (1,)), Chunk(0, 0, (3,))]
    bench.device.copy_out(chunks, bench.rows(chunks), bench.device.fence())
    bench.device.copy_in(bench.rows(chunks), chunks, bench.device.fence())
    assert driver.batches == [(2, False), (2, True)]


# ---- registration


def test_the_arena_is_pinned_in_steps_of_whole_rows(driver: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is no multiple of a row; the stand-in refuses copies that span two registrations."""
    bench = Bench(driver, FULL)
    monkeypatch.setattr(cuda, "_REGISTER_STEP", bench.arena.row_bytes * 5 // 2)
    bench.device.adopt(bench.arena)
    covered = sorted((each.begin, each.end) for each in driver.registered.values())
    assert len(covered) == 4
    assert covered[0][0] == bench.arena.address
    assert [end for _, end in covered[:-1]] == [begin for begin, _ in covered[1:]]
    assert covered[-1][1] == bench.arena.address + bench.arena.slots * bench.arena.row_bytes
    chunks = [Chunk(0, 0, (slot, slot + 8, slot + 16)) for slot in range(8)]
    bench.fill(4)
    bench.device.copy_out(chunks, bench.rows(chunks), bench.device.fence())
    bench.device.close()
    bench.device.close()
    assert not driver.registered


def test_a_row_larger_than_a_step_is_pinned_at_once(driver: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other end of the same rule."""
    bench = Bench(driver, FULL)
    monkeypatch.setattr(cuda, "_REGISTER_STEP", 4096)
    bench.device.adopt(bench.arena)
    assert {each.end - each.begin for each in driver.registered.values()} == {bench.arena.row_bytes}


@pytest.mark.parametrize("pinned", [0, 2])
def test_what_cannot_be_pinned_is_a_warning(
    pinned: int, driver: HostCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Copies go on, and what was pinned is let go of at the end."""
    bench = Bench(driver, FULL)
    monkeypatch.setattr(cuda, "_REGISTER_STEP", bench.arena.row_bytes)
    monkeypatch.setattr(cuda.logger, "propagate", True)
    driver.refuse_after = pinned
    bench.device.adopt(bench.arena)
    assert len(driver.registered) == pinned
    assert "not pinned" in caplog.text
    chunks = [Chunk(0, 0, (slot,)) for slot in range(8)]
    rows = bench.rows(chunks)
    bench.fill(9)
    bench.device.copy_out(chunks, rows, bench.device.fence())
    size = bench.device.block_bytes[0]
    assert [row[:size].tobytes() for row in rows] == [bench.memory.payload(0, slot) for slot in range(8)]
    bench.device.close()
    assert not driver.registered


def test_a_driver_that_does_not_return_is_given_up(driver: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half cannot start then. What the driver pinned when it returned at last is let go of."""
    bench = Bench(driver, FULL)
    monkeypatch.setattr(cuda, "_REGISTER_STEP", bench.arena.row_bytes)
    monkeypatch.setattr(cuda, "_PIN_LEAST_S", 0.1)
    returns, steps = threading.Event(), []

    def register(address: int, size: int) -> bool:
        steps.append(address)
        assert returns.wait(PATIENCE_S)
        return driver.host_register(address, size)

    monkeypatch.setattr(cuda, "host_register", register)
    with pytest.raises(TimeoutError, match="has not pinned"):
        bench.device.adopt(bench.arena)
    released = threading.Event()

    def unregister(address: int) -> None:
        driver.host_unregister(address)
        released.set()

    monkeypatch.setattr(cuda, "host_unregister", unregister)
    returns.set()
    assert released.wait(PATIENCE_S)
    assert not driver.registered
    assert len(steps) == 1


# ---- the stand-in itself


def test_the_stand_in_notices_what_it_is_for(driver: HostCuda) -> None:
    """Lists that are gone, a copy outside device memory, a copy over the edge of a registration."""
    kv, host = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    driver.device_memory.append(Range(kv.ctypes.data, kv.ctypes.data + 64))
    driver.registered[0] = Range(host.ctypes.data, host.ctypes.data + 32)

    def lists(source: int, target: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.tensor([source]), torch.tensor([target]), torch.tensor([size])

    driver.swap_blocks_batch(*lists(kv.ctypes.data, host.ctypes.data, 8))
    with pytest.raises(AssertionError, match="are gone"):
        driver.compute.synchronize()
    driver.compute.queue.clear()
    for source, target, size, why in (
        (kv.ctypes.data + 60, host.ctypes.data, 8, "device memory"),
        (kv.ctypes.data, kv.ctypes.data + 8, 8, "device memory"),
        (kv.ctypes.data, host.ctypes.data + 28, 8, "registrations"),
    ):
        stream, held = Stream(), lists(source, target, size)
        with driver.stream(stream):
            driver.swap_blocks_batch(*held)
        with pytest.raises(AssertionError, match=why):
            stream.synchronize()
    assert ctypes.string_at(host.ctypes.data, 64) == bytes(64)
