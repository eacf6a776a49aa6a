"""What the index of a tier weighs: bytes of host memory per cached chunk, the key itself included.

    python -m bench.index

Counted with tracemalloc over the making of an index and 100 000 keys as vLLM makes them (36 bytes), each owning a READY slot.
numpy reports its buffers to tracemalloc. No vLLM, no bytes of chunks.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import tracemalloc

from kvpool_connector.tiers.policy import make_policy
from kvpool_connector.tiers.slots import SlotIndex, State

KEYS = 100_000
ROUNDS = 3
GOAL = 200


def main() -> int:
    """Entry point; the exit code says whether the goal is reached."""
    found = [bytes_per_key(KEYS) for _ in range(ROUNDS)]
    low, median, high = statistics.quantiles(found, n=4, method="inclusive")
    print(f"{median:.0f} bytes per chunk at {KEYS} chunks; goal {GOAL}")
    figure = {"median": round(median, 1), "quartiles": [round(value, 1) for value in (low, median, high)], "n": ROUNDS}
    print(json.dumps({"index_bytes_per_chunk": figure}))
    return int(median > GOAL)


def bytes_per_key(count: int) -> float:
    """Memory of a full index, over its keys."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = SlotIndex(count, make_policy("lru"))
    for _ in range(count):
        slot = index.add(os.urandom(36), State.STORING)
        if slot is None:
            raise RuntimeError("an index gives each of its slots to a key")
        index.set_state(slot, State.READY)
    index.coldest(1)  # the order of eviction is part of what it holds
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    if len(index) != count:
        raise RuntimeError(f"{len(index)} of {count} keys are in the index")
    return held / count


if __name__ == "__main__":
    sys.exit(main())
