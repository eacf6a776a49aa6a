"""Workers over a real event loop; nothing waits for wall-clock time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from kvpool_operator.handlers.queue import WorkQueue
from kvpool_operator.handlers.workers import Workers
from kvpool_operator.kube import ApiError
from kvpool_operator.observe.gather import PoolKey

A, B = ("ns", "a"), ("ns", "b")


@asynccontextmanager
async def running(
    reconcile: Callable[[PoolKey], Awaitable[float | None]], *, count: int = 2
) -> AsyncIterator[tuple[Workers, WorkQueue[PoolKey]]]:
    queue: WorkQueue[PoolKey] = WorkQueue(clock=time.monotonic, random=lambda: 0.0)
    workers = Workers(queue, reconcile, count=count)
    task = asyncio.create_task(workers.run())
    try:
        yield workers, queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_one_pool_is_never_reconciled_twice_at_once() -> None:
    inside: Counter[PoolKey] = Counter()
    most: Counter[PoolKey] = Counter()
    count = 0
    finished = asyncio.Event()

    async def reconcile(key: PoolKey) -> None:
        nonlocal count
        inside[key] += 1
        most[key] = max(most[key], inside[key])
        await asyncio.sleep(0)
        workers.add(key)  # as an event during the work would
        await asyncio.sleep(0)
        inside[key] -= 1
        count += 1
        if count >= 20:
            finished.set()

    async with running(reconcile, count=4) as (workers, _):
        workers.add(A)
        workers.add(B)
        async with asyncio.timeout(10):
            await finished.wait()
    assert most == {A: 1, B: 1}


@pytest.mark.parametrize("error", [ApiError(status=503, message="busy"), RuntimeError("a fault of ours")])
async def test_a_failure_is_tried_again_and_leaves_other_pools_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[PoolKey] = []
    recovered = asyncio.Event()

    async def reconcile(key: PoolKey) -> None:
        seen.append(key)
        if key == A and seen.count(A) == 1:
            raise error
        if key == A:
            recovered.set()

    async with running(reconcile) as (workers, _):
        workers.add(A)
        workers.add(B)
        async with asyncio.timeout(10):
            await recovered.wait()
    assert seen.count(B) == 1
    assert "ns/a" in caplog.text


async def test_a_later_look_happens_without_an_event() -> None:
    again = asyncio.Event()
    calls = 0

    async def reconcile(key: PoolKey) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            again.set()
        return 0.01

    async with running(reconcile) as (workers, _):
        workers.add(A)
        async with asyncio.timeout(10):
            await again.wait()
