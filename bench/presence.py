"""What it costs to know what a shared store has, when more is wanted at once than fits: 250 000 keys of 61 prompts.

    python -m bench.presence

A real Redis on loopback, the scheduler's half and its thread; the loop of lookups is vLLM's: a scan of one prompt's keys
after the other, and then of those whose answers came, in steps of 10 ms. Each scan is timed alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

import redis

from kvpool_connector.config import RedisRemote
from kvpool_connector.format import part_name
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.stores import Breaker
from kvpool_connector.stores.redis import RedisStore
from testkit.servers import KeyValueServer

PROMPTS, KEYS = 61, 4096
"""128K tokens in chunks of 32: what 250 000 keys are of a model of 70B in eight ranks."""
ROUNDS = 5
MOST_SCAN_S, MOST_ALL_S = 0.005, 2.0
_STEP_S = 0.01
_LONGEST_S = 60.0
_IDENTITY = "0" * 32


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """Of one run, in seconds."""

    longest_scan_s: float
    longest_scan_cpu_s: float
    """Of the scheduler's thread alone: what a scan takes where nobody else wants the core."""
    all_answered_s: float


def main() -> int:
    """Entry point; the exit code says whether the goals are reached."""
    with KeyValueServer() as server:
        prompts = [tuple(os.urandom(32) + bytes(4) for _ in range(KEYS)) for _ in range(PROMPTS)]
        fill(server, [key for keys in prompts for key in keys])
        runs = [wanted_keys(server, prompts) for _ in range(ROUNDS)]
    quartiles = {
        field.name: statistics.quantiles([getattr(run, field.name) for run in runs], n=4, method="inclusive")
        for field in dataclasses.fields(Figures)
    }
    figures = {
        name: {"median": round(found[1], 4), "quartiles": [round(value, 4) for value in found], "n": ROUNDS}
        for name, found in quartiles.items()
    }
    scan_s, cpu_s, all_s = (found[1] for found in quartiles.values())
    print(
        f"{PROMPTS * KEYS} wanted keys: longest scan of {KEYS} {scan_s * 1e3:.1f} ms ({cpu_s * 1e3:.1f} ms of CPU), "
        f"all answered in {all_s:.2f} s"
    )
    print(json.dumps({"wanted_keys": PROMPTS * KEYS} | figures))
    return int(scan_s > MOST_SCAN_S or all_s > MOST_ALL_S)


def fill(server: KeyValueServer, keys: Sequence[bytes]) -> None:
    """Put a value under each key's name."""
    with redis.Redis(host=server.host, port=server.port) as client:
        for start in range(0, len(keys), 4096):
            client.mset({part_name(_IDENTITY, 0, key): b"1" for key in keys[start : start + 4096]})


def wanted_keys(server: KeyValueServer, prompts: Sequence[Sequence[bytes]]) -> Figures:
    """Ask for all keys of all prompts in one step, and go on in steps until every prompt was found to its end.

    Raises:
        RuntimeError: a key that is there was not found.
    """
    config = RedisRemote.model_validate(server.remote(timeouts={"stall_ms": 3000}))  # the machine may be busy
    presence = Presence(
        RedisStore(config, Breaker()),
        names=lambda key: [part_name(_IDENTITY, 0, key)],
        timeout_s=lambda _: _LONGEST_S,
        patience_s=_LONGEST_S,
    )
    while not presence.reachable:
        time.sleep(_STEP_S)
    try:
        began = time.perf_counter()
        longest = longest_cpu = 0.0
        waiting = {str(number): keys for number, keys in enumerate(prompts)}
        due = set(waiting)
        while waiting:
            for req_id in due:
                started = time.perf_counter()
                cpu = time.thread_time()
                answers = [presence.ask(key, req_id, None, True) for key in waiting[req_id]]
                longest = max(longest, time.perf_counter() - started)
                longest_cpu = max(longest_cpu, time.thread_time() - cpu)
                if False in answers:
                    raise RuntimeError("a key that is in the store was not found")
                if None not in answers:
                    del waiting[req_id]
            presence.flush()
            if time.perf_counter() - began > _LONGEST_S:
                raise RuntimeError(f"{len(waiting)} prompts had no answer")
            time.sleep(_STEP_S)
            due = presence.take_answers() & set(waiting)
        return Figures(longest, longest_cpu, time.perf_counter() - began)
    finally:
        presence.close()


if __name__ == "__main__":
    sys.exit(main())
