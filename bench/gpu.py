"""What the device copy gets out of the link to the GPU: its rate over that of one large copy from and to pinned memory.

    PYTHONPATH=connector/src:. .venvs/engine/bin/python -m bench.gpu

Without a CUDA device it says so and ends. NOT YET RUN ON A GPU.

KV memory is one allocation of the GPU in vLLM's layouts (LBHNC: a layer's blocks one after the other; or one packed page per
block). Blocks are taken from all over it. The link's rate is torch's copy between one pinned tensor and one on the GPU, of
as many bytes. Both take turns, and a share is that of neighbours in time; the host waits for each to end, as the mover
does.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kvpool_connector.tiers.arena import Arena, row_bytes_for
from kvpool_connector.worker.device.base import Chunk, Device, Page
from testkit.host import describe

KV_GIB = 8
BATCH_MIB = 512
ROUNDS = 31
GOAL = 0.9
JOINED_BYTES = 28 << 10
"""Below this, drivers' batched copies are slow by nature (H100, vLLM's pull request 42212): shown, and not judged."""


class Layout(NamedTuple):
    """Pages of a block, bytes of a page, blocks of a chunk (see `kvpool_connector.vllm.chunks`)."""

    name: str
    pages: int
    page_bytes: int
    blocks: int


LAYOUTS = (
    Layout("Llama 3.1 8B, TP 1, blocks of 16 tokens", 32, 64 << 10, 1),
    Layout("Llama 3.1 8B, TP 2, blocks of 16 tokens", 32, 32 << 10, 1),
    Layout("Llama 3.1 8B, TP 8, blocks of 16 tokens", 32, 8 << 10, 4),
    Layout("one packed page of 2 MiB", 1, 2 << 20, 1),
)

Case = tuple[Layout, str, list[float], list[float], list[float]]
"""Layout, direction, GB/s of the device, GB/s of the link, and the first over the second, one of each per round."""


def main() -> int:
    """Entry point; the exit code says whether the median share reaches the goal in every case that is judged."""
    try:
        torch: Any = importlib.import_module("torch")  # only the engine environment has it
    except ModuleNotFoundError:
        print("no torch here: not run")
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device: not run")
        return 0
    cases = [case for layout in LAYOUTS for case in _measure(torch, layout)]
    print(f"{'':48} {'device, GB/s':>22} {'link, GB/s':>22} {'share':>18} {'n':>3}")
    for layout, way, ours, link, shares in cases:
        print(
            f"{layout.name + ', ' + way:48} {_spread(ours):>22} {_spread(link):>22} {_spread(shares):>18} {len(shares):3}"
        )
    judged = [case for case in cases if case[0].page_bytes >= JOINED_BYTES]
    worst = min(judged, key=lambda case: statistics.median(case[4]))
    figures = {f"{layout.name}, {way}": _figure(shares) for layout, way, _, _, shares in cases}
    share = {**_figure(worst[4]), "case": f"{worst[0].name}, {worst[1]}"}
    gpu = torch.cuda.get_device_name()
    print(json.dumps({"copy_share_gpu": share, "cases": figures, "gpu": gpu, "machine": describe()}))
    return int(statistics.median(worst[4]) < GOAL)


def _measure(torch: Any, layout: Layout) -> list[Case]:
    make_device = importlib.import_module("kvpool_connector.worker.device.cuda").CudaDevice  # it needs torch
    block_bytes = layout.pages * layout.page_bytes
    payload = block_bytes * layout.blocks
    number, count = (BATCH_MIB << 20) // payload, (KV_GIB << 30) // block_bytes
    nbytes = payload * number
    memory = torch.randint(0, 256, (count * block_bytes,), dtype=torch.uint8, device="cuda")
    begin, layer = memory.data_ptr(), count * layout.page_bytes
    pages = [Page(begin + page * layer, layout.page_bytes, layout.page_bytes) for page in range(layout.pages)]
    device: Device = make_device([pages], memory.device)
    arena, pinned = Arena(number, row_bytes_for(payload)), torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)
    device.adopt(arena)
    rows = [arena.payload(slot, payload) for slot in range(number)]
    flat = memory[:nbytes]
    chunks: list[Chunk] = []

    def link(target: Any, source: Any) -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    pairs: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "store": (lambda: device.copy_out(chunks, rows, device.fence()), lambda: link(pinned, flat)),
        "load": (lambda: device.copy_in(rows, chunks, device.fence()), lambda: link(flat, pinned)),
    }
    rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    source = np.random.default_rng(1)
    for turn in range(-1, ROUNDS):  # the first round warms up and does not count
        blocks = source.permutation(count)[: number * layout.blocks].reshape(number, layout.blocks).tolist()
        chunks[:] = [Chunk(0, 0, tuple(each)) for each in blocks]
        for name, ways in pairs.items():
            for way in (0, 1) if turn % 2 else (1, 0):  # neither is always the first
                torch.cuda.synchronize()
                started = time.perf_counter()
                ways[way]()
                if turn >= 0:
                    rates[name][way].append(nbytes / (time.perf_counter() - started) / 1e9)
    _check(torch, device, memory, pages, rows, chunks)
    device.close()
    return [
        (layout, way, ours, theirs, [a / b for a, b in zip(ours, theirs, strict=True)])
        for way, (ours, theirs) in rates.items()
    ]


def _check(torch: Any, device: Device, memory: Any, pages: list[Page], rows: list[Any], chunks: list[Chunk]) -> None:
    """A fast copy of the wrong bytes is not fast: rows after a store hold what the GPU holds."""
    device.copy_out(chunks, rows, device.fence())
    for chunk, row in list(zip(chunks, rows, strict=True))[:4]:
        starts = [page.address + block * page.stride - memory.data_ptr() for block in chunk.blocks for page in pages]
        held = torch.cat([memory[start : start + pages[0].size] for start in starts]).cpu().numpy()
        if not np.array_equal(held, row):
            raise SystemExit("the device copied wrong bytes")


def _figure(values: list[float]) -> dict[str, object]:
    return {"n": len(values), "quartiles": [round(value, 3) for value in statistics.quantiles(values, n=4)]}


def _spread(values: list[float]) -> str:
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
