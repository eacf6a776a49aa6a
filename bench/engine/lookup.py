"""What the connector costs vLLM's scheduler thread: the life of a 128K-token prompt, and a step with 200 waiting requests.

Run with the engine's Python: ``PYTHONPATH=connector/src python -m bench.engine.lookup``. Measured on
the manager as vLLM calls it, without vLLM's own loops around it, whose time is printed beside it where
they can be called alone. The store is a stand-in that never answers (the waiting requests) or is not
there; everything else is the real thing.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import OffloadingConnectorScheduler
from vllm.v1.kv_offload.base import OffloadKey, ReqContext, ScheduleEndContext

from kvpool_connector.geometry import Blocks, Geometry
from kvpool_connector.scheduler.admission import Admission
from kvpool_connector.scheduler.events import Events
from kvpool_connector.scheduler.pool import Pool
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.scheduler.secondary.remote import RemoteIndex
from kvpool_connector.tiers.arena import row_bytes_for
from kvpool_connector.tiers.policy import make_policy
from kvpool_connector.tiers.slots import SlotIndex
from kvpool_connector.vllm.manager import KVPoolManager

KEYS = 8000
WAITING, KEYS_OF_ONE = 200, 100
ROUNDS = 15


class Silent:
    """A remote store that is reachable and has not answered yet."""

    generation, reachable = 1, True

    def ask(self, key: bytes, req_id: str, window: int | None = None, at_head: bool = False) -> bool | None:
        return None

    def take_answers(self) -> set[str]:
        return set()

    def take_counts(self) -> Counter[str]:
        return Counter()

    def take_refreshed(self) -> list[tuple[bytes, bool]]:
        return []

    def refresh(self, keys: Sequence[bytes]) -> bool:
        return False

    def flush(self) -> None:
        pass


def manager(slots: int, presence: Silent | None = None) -> KVPoolManager:
    """A manager without an engine around it."""
    index = SlotIndex(slots, make_policy("lru"))
    secondaries = [RemoteIndex(cast(Presence, presence), index)] if presence else []
    pool = Pool(index, 1, secondaries, Admission(1 << 20, 16), Events(enabled=False))
    blocks = Blocks(world_size=1, tokens=(16,), nbytes=1 << 20, per_chunk=1)
    geometry = Geometry(
        identity="0" * 32,
        blocks=blocks,
        row_bytes=row_bytes_for(blocks.nbytes),
        slots=slots,
        disk_slots=0,
        store_lends=0,
        disk_lends=0,
    )
    return KVPoolManager(pool, geometry)


def keys_of(number: int, count: int) -> list[OffloadKey]:
    """Keys as vLLM makes them: 32 bytes of hash, 4 of group."""
    return [OffloadKey(os.urandom(28) + number.to_bytes(4, "big") + bytes(4)) for _ in range(count)]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def long_prompt(count: int, rounds: int) -> dict[str, list[float]]:
    """Every call that a fully cached prompt of so many keys makes."""
    subject, end = manager(2 * count), ScheduleEndContext([], [])
    keys = keys_of(0, count)
    stored = subject.prepare_store(keys, ReqContext("writer"))
    if stored is None:
        raise RuntimeError("nothing was stored")
    subject.complete_store(set(stored.keys_to_store), ReqContext("writer"))
    loop = SimpleNamespace(manager=subject, _events_tracker=SimpleNamespace(record_lookup=lambda *_: None))
    times: dict[str, list[float]] = {"lookup, load and store": [], "vLLM's lookup loop with ours inside": []}
    for number in range(rounds):
        context = ReqContext(f"r{number}")
        total = timed(lambda: [subject.lookup(key, context) for key in keys])  # noqa: B023 - called at once
        total += timed(lambda: subject.prepare_load(keys, context))  # noqa: B023
        total += timed(lambda: subject.on_schedule_end(end))
        total += timed(lambda: subject.prepare_store(keys, context))  # noqa: B023
        whole = set(keys)
        total += timed(lambda: subject.complete_load(whole, context))  # noqa: B023
        total += timed(lambda: subject.on_request_finished(context))  # noqa: B023
        times["lookup, load and store"].append(total)
        found = timed(
            lambda: OffloadingConnectorScheduler._maximal_prefix_lookup(
                cast(Any, loop), keys, context, cast(Any, None), cast(Any, None), 0  # noqa: B023
            )
        )  # fmt: skip
        times["vLLM's lookup loop with ours inside"].append(found)
        subject.on_schedule_end(end)
    return times


def waiting_requests(count: int, rounds: int) -> list[float]:
    """One scheduling step that looks at so many requests which wait for the store's answer."""
    subject = manager(1000, Silent())
    loop = SimpleNamespace(manager=subject, _events_tracker=SimpleNamespace(record_lookup=lambda *_: None))
    requests = [(ReqContext(f"r{number}"), keys_of(number, KEYS_OF_ONE)) for number in range(count)]

    def step() -> None:
        for context, keys in requests:
            found = OffloadingConnectorScheduler._maximal_prefix_lookup(
                cast(Any, loop), keys, context, cast(Any, None), cast(Any, None), 0
            )
            if found is not None:
                raise RuntimeError("a waiting request must be deferred")
        subject.on_schedule_end(ScheduleEndContext([], []))

    step()  # the first one asks
    return [timed(step) for _ in range(rounds)]


def figure(times: list[float]) -> dict[str, Any]:
    """Quartiles and how many."""
    return {"quartiles": [round(value, 3) for value in statistics.quantiles(times, n=4)], "n": len(times)}


def main() -> None:
    """Print the table, and as the last line the figures."""
    life = {what: figure(times) for what, times in long_prompt(KEYS, ROUNDS).items()}
    waiting = figure(waiting_requests(WAITING, ROUNDS))
    print(f"{'scheduler thread':<52}{'median':>10}{'quartiles':>18}")
    for what, numbers in [*((f"{KEYS} keys: {what}", n) for what, n in life.items()),
                          (f"a step with {WAITING} waiting requests of {KEYS_OF_ONE} keys", waiting)]:  # fmt: skip
        low, median, high = numbers["quartiles"]
        print(f"{what:<52}{median:>7.2f} ms{low:>9.2f} - {high:.2f}")
    print(json.dumps({"lookup_8000_ms": life["lookup, load and store"], "waiting_step_ms": waiting}))


if __name__ == "__main__":
    main()
