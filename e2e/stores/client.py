"""Runs inside an engine's Pod: what the engine would do with the store, by the configuration that is mounted there.

`python3 - put|get|ping NAME [NAME...]` prints one JSON list: the outcome for each name. A name has one content; a value
that is read and differs from it is told as DIFFERENT.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

from kvpool_connector.config import load
from kvpool_connector.stores import Breaker, Outcome
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
    store = make_store(remote, Breaker())
    deadline = time.monotonic() + PATIENCE_S
    keys = [name.encode() for name in names]
    if verb == "ping":
        return [store.ping(deadline).name]
    if verb == "put":
        return [one.name for one in store.put_from(keys, [memoryview(content(name)) for name in names], deadline)]
    buffers = [bytearray(SIZE) for _ in names]
    outcomes = store.get_into(keys, [memoryview(buffer) for buffer in buffers], deadline)
    return [
        "DIFFERENT" if outcome is Outcome.HIT and buffer != content(name) else outcome.name
        for name, buffer, outcome in zip(names, buffers, outcomes, strict=True)
    ]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])), flush=True)
    os._exit(0)  # Mooncake's client of several masters takes half a minute to leave
