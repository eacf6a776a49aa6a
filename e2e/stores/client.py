"""Runs inside an engine's Pod: what the engine would do with the store, by the configuration that is mounted there.

`python3 - put|get|ping NAME [NAME...]` prints one JSON list: the outcome for each name. A name has one content; a value
that is read and differs from it is told as DIFFERENT.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import time

from kvpool_connector.config import load
from kvpool_connector.stores import Breaker, Memory, Outcome
from kvpool_connector.stores.factory import make_store

SIZE = 1 << 20
PATIENCE_S = 20.0


def content(name: str) -> bytes:
    """A mebibyte that is this name's alone."""
    return hashlib.shake_128(name.encode()).digest(SIZE)


def main(verb: str, names: list[str]) -> list[str]:
    """One call of the client with all names."""
    remote = load({}).remote
    assert remote is not None
    memory = memoryview(mmap.mmap(-1, SIZE * len(names)))
    store = make_store(remote, Breaker(), Memory(memory, len(names)))
    rows = [memory[start : start + SIZE] for start in range(0, len(memory), SIZE)]
    deadline = time.monotonic() + PATIENCE_S
    keys = [name.encode() for name in names]
    if verb == "ping":
        return [store.ping(deadline).name]
    if verb == "put":
        for name, row in zip(names, rows, strict=True):
            row[:] = content(name)
        return [one.name for one in store.put_from(keys, rows, deadline)]
    outcomes = store.get_into(keys, rows, deadline)
    return [
        "DIFFERENT" if outcome is Outcome.HIT and row != content(name) else outcome.name
        for name, row, outcome in zip(names, rows, outcomes, strict=True)
    ]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])), flush=True)
    os._exit(0)  # Mooncake's client of several masters takes half a minute to leave
