"""What the disk tier's slab gets out of a disk: its throughput over that of a plain loop of direct reads and writes.

    python -m bench.disk [FOLDER]

Both move the same rows to and from the same slots of one file, in turn and in one random order, so that no two of them
are neighbours: the slab would join those to larger calls and win. No vLLM, one thread, queue depth 1. FOLDER names the
disk; without it, the one with the temporary files. Needs 512 MiB there.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.spread import quartiles, spread
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import Slab
from testkit.host import describe

ROW_MIB = (1, 4)
FILE_MIB = 512
BATCH_MIB = 64
ROUNDS = 15
GOAL = 0.9


def main() -> int:
    """Entry point; the exit code says whether the median share reaches the goal in every case."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None, prefix="kvpool-disk-") as folder:
        cases = [case for row_mib in ROW_MIB for case in _measure(Path(folder) / str(row_mib), row_mib)]
    print(f"{'':12} {'slab, GB/s':>22} {'plain loop, GB/s':>22} {'share':>22} {'n':>3}")
    for name, slab, plain, shares in cases:
        print(f"{name:12} {spread(slab):>22} {spread(plain):>22} {spread(shares):>22} {len(shares):3}")
    figures = {
        name: {
            "n": len(shares),
            "quartiles": quartiles(shares),
            "ours": round(statistics.median(slab), 3),
            "theirs": round(statistics.median(plain), 3),
        }
        for name, slab, plain, shares in cases
    }
    worst = min(figures, key=lambda name: statistics.median(_shares(cases, name)))
    print(json.dumps({"disk_share": {**figures[worst], "case": worst}, "cases": figures, "machine": describe()}))
    return int(statistics.median(_shares(cases, worst)) < GOAL)


_Case = tuple[str, list[float], list[float], list[float]]
"""Name, GB/s of the slab, GB/s of the loop, and the first over the second, one of each per round."""


def _measure(folder: Path, row_mib: int) -> list[_Case]:
    row_bytes, slots, count = row_mib << 20, FILE_MIB // row_mib, BATCH_MIB // row_mib
    slab, arena = Slab(folder, 0, slots, row_bytes, "0" * 32), Arena(count, row_bytes)
    if not slab.direct:
        raise SystemExit(f"{folder} has no direct I/O: name a folder on a disk")
    rows, noise = [arena.row(slot) for slot in range(count)], np.random.default_rng(1)
    for slot in range(count):
        arena.part(slot, row_bytes - 64)[:] = noise.integers(0, 256, row_bytes, np.uint8)
    for start in range(
        0, slots, count
    ):  # the first write of a block is dearer: the file system must note that it is used
        _all_hit(slab.write_from(range(start, start + count), rows, time.monotonic() + 60))
    plain = os.open(folder / "rank-0.slab", os.O_RDWR | os.O_DIRECT)

    def loop(call: Callable[[int, list[memoryview], int], int]) -> Callable[[list[int]], None]:
        def run(order: list[int]) -> None:
            for slot, row in zip(order, rows, strict=True):
                if call(plain, [row], slot * row_bytes) != row_bytes:
                    raise SystemExit("short call")

        return run

    pairs: dict[str, tuple[Callable[[list[int]], None], Callable[[list[int]], None]]] = {
        "write": (
            lambda order: _all_hit(slab.write_from(order, rows, time.monotonic() + 60)),
            loop(os.pwritev),
        ),
        "read": (
            lambda order: _all_hit(slab.read_into(order, rows, time.monotonic() + 60)),
            loop(os.preadv),
        ),
    }
    rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for number in range(ROUNDS):
        order = random.sample(range(0, slots, 2), count)
        for name, ways in pairs.items():
            for way in (0, 1) if number % 2 else (1, 0):  # neither is always the first
                started = time.perf_counter()
                ways[way](order)
                rates[name][way].append(count * row_bytes / (time.perf_counter() - started) / 1e9)
    os.close(plain)
    slab.close()
    (folder / "rank-0.slab").unlink()
    return [
        (f"{name} {row_mib} MiB", ours, theirs, [a / b for a, b in zip(ours, theirs, strict=True)])
        for name, (ours, theirs) in rates.items()
    ]


def _all_hit(outcomes: list[Outcome]) -> None:
    if set(outcomes) != {Outcome.HIT}:
        raise SystemExit(f"the disk fails: {outcomes}")


def _shares(cases: list[_Case], wanted: str) -> list[float]:
    return next(shares for name, _, _, shares in cases if name == wanted)


if __name__ == "__main__":
    sys.exit(main())
