"""What the device copy gets out of host memory: its rate over that of a one-thread memcpy of the same bytes.

    python -m bench.copy

KV memory is laid out as vLLM's CPU backend does it (LBHNC: one allocation, a layer's blocks one after the other, K and V of
a block in one page), without huge pages, like torch's. Blocks are taken from all over it, as in an engine that has run for a
while. The memcpy is one slice assignment between the same two memories, KV memory and arena, over as many bytes in one
piece. Both take turns, and a share is that of neighbours in time. One thread, no vLLM.

The goal is set for the layout that the engine benchmarks run on this CPU and for packed pages. Layouts of smaller pages are
shown beside it: every piece costs about half a microsecond to begin, whoever copies it (a strided copy of 12 KiB pieces
without this project's code gets three quarters of a memcpy, too).
"""

from __future__ import annotations

import json
import mmap
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bench.spread import quartiles, spread
from kvpool_connector.tiers.arena import Arena, row_bytes_for
from kvpool_connector.worker.device.base import Chunk
from kvpool_connector.worker.device.cpu import CpuDevice
from testkit.host import chosen_dtype, describe

KV_MIB = 512
BATCH_MIB = 96
"""Larger than caches: what is copied is in none of them."""
ROUNDS = 41
GOAL = 0.8


class Layout(NamedTuple):
    """Pages of a block, bytes of a page, blocks of a chunk (see `kvpool_connector.vllm.chunks`), and whether the goal is set
    for them."""

    name: str
    pages: int
    page_bytes: int
    blocks: int
    judged: bool


LAYOUTS = (
    Layout("SmolLM2-135M float32, blocks of 32 tokens", 30, 48 << 10, 1, chosen_dtype() == "float32"),
    Layout("SmolLM2-135M bfloat16, blocks of 32 tokens", 30, 24 << 10, 2, chosen_dtype() == "bfloat16"),
    Layout("SmolLM2-135M bfloat16, blocks of 16 tokens", 30, 12 << 10, 4, judged=False),
    Layout("one packed page of 720 KiB", 1, 720 << 10, 2, judged=True),
)


class Case(NamedTuple):
    """One direction of a layout: GB/s of the device, GB/s of the memcpy and their quotient, one of each per round."""

    name: str
    judged: bool
    device: list[float]
    memcpy: list[float]
    shares: list[float]


def main() -> int:
    """Entry point; the exit code says whether the median share reaches the goal wherever it is set."""
    cases = [case for layout in LAYOUTS for case in measure(layout)]
    print(f"{'':48} {'device, GB/s':>22} {'memcpy, GB/s':>22} {'share':>18} {'n':>3}")
    for case in cases:
        figures = (f"{spread(case.device):>22} {spread(case.memcpy):>22}", f"{spread(case.shares):>18}")
        print(f"{case.name:48} {figures[0]} {figures[1]} {len(case.shares):3}")
    judged = [case for case in cases if case.judged]
    worst = min(judged, key=lambda case: statistics.median(case.shares))
    share = {"n": len(worst.shares), "quartiles": quartiles(worst.shares), "case": worst.name}
    by_case = {case.name: {"n": len(case.shares), "quartiles": quartiles(case.shares)} for case in cases}
    print(json.dumps({"copy_share": share, "cases": by_case, "machine": describe()}))
    return int(statistics.median(worst.shares) < GOAL)


def measure(layout: Layout) -> list[Case]:
    """Both directions."""
    block_bytes = layout.pages * layout.page_bytes
    payload, number = block_bytes * layout.blocks, (BATCH_MIB << 20) // (block_bytes * layout.blocks)
    count, nbytes = (KV_MIB << 20) // block_bytes, payload * number
    memory = np.frombuffer(mmap.mmap(-1, count * block_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    noise = np.random.default_rng(1)
    memory[:] = np.resize(noise.integers(0, 256, 1 << 20, np.uint8), memory.shape)
    layers = memory.reshape(layout.pages, count, layout.page_bytes)
    device = CpuDevice([[(layer, layout.page_bytes) for layer in layers]])
    arena = Arena(number, row_bytes_for(payload))
    rows = [arena.payload(slot, payload) for slot in range(number)]
    for row in rows:
        row[:] = 1  # first touch is the start-up's cost, not the copy's
    flat = np.lib.stride_tricks.as_strided(rows[0], (nbytes,), (1,))  # rows and headers alike, in one piece
    start = 0

    def one_piece() -> slice:
        nonlocal start
        start = (start + nbytes // 3) % (len(memory) - nbytes)
        return slice(start, start + nbytes)

    chunks: list[Chunk] = []
    pairs: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "store": (lambda: device.copy_out(chunks, rows, None), lambda: np.copyto(flat, memory[one_piece()])),
        "load": (lambda: device.copy_in(rows, chunks, None), lambda: np.copyto(memory[one_piece()], flat)),
    }
    rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for turn in range(ROUNDS):
        blocks = noise.permutation(count)[: number * layout.blocks].reshape(number, layout.blocks).tolist()
        chunks[:] = [Chunk(0, 0, tuple(each)) for each in blocks]
        for name, ways in pairs.items():
            for way in (0, 1) if turn % 2 else (1, 0):  # neither is always the first
                started = time.perf_counter()
                ways[way]()
                rates[name][way].append(nbytes / (time.perf_counter() - started) / 1e9)
    return [
        Case(f"{layout.name}, {name}", layout.judged, ours, theirs, [a / b for a, b in zip(ours, theirs, strict=True)])
        for name, (ours, theirs) in rates.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
