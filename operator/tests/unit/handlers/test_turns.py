"""The longest turn of an event loop, as it is measured beside other work."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from prometheus_client import CollectorRegistry, generate_latest

from kvpool_operator.handlers.turns import Turns


def compute(seconds: float) -> None:
    """Keep the thread's core busy for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def watched(*steps: float) -> float:
    """Return the longest turn where each step computes for so many seconds, in a turn of its own."""
    turns = Turns()
    watching = asyncio.create_task(turns.watch())
    for seconds in steps:
        await asyncio.sleep(0.02)
        compute(seconds)
    await asyncio.sleep(0.02)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return turns.longest_s


async def test_a_long_turn_is_seen() -> None:
    assert 0.1 <= await watched(0.01, 0.1, 0.01) < 0.15


async def test_many_short_turns_are_no_long_one() -> None:
    assert await watched(*[0.004] * 20) < 0.05


async def test_waiting_for_a_core_or_a_peer_is_not_counted() -> None:
    turns = Turns()
    watching = asyncio.create_task(turns.watch())
    await asyncio.sleep(0.02)
    time.sleep(0.2)
    await asyncio.sleep(0.02)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    assert turns.longest_s < 0.1


def test_metrics_name_it() -> None:
    turns = Turns()
    registry = CollectorRegistry()
    registry.register(turns)
    turns.longest_s = 0.0123
    for expected in ("0.0123", "0.0"):
        line = generate_latest(registry).decode().splitlines()[-1]
        assert line == f"kvpool_operator_longest_turn_seconds {expected}"
