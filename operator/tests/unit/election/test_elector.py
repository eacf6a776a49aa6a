"""The elector against a Lease whose server is reached or not, in tenths of the usual seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from kvpool_operator.api.settings import Election
from kvpool_operator.election.elector import Elector
from kvpool_operator.kube import NotLeading
from kvpool_operator.kube.fence import Fence, boot_clock
from testkit.patience import PATIENCE_S

from .lease_server import LeaseServer

QUICK = Election(
    lease_seconds=2,
    renew_seconds=1.2,
    pause_seconds=0.1,
    look_seconds=0.05,
    request_seconds=0.3,
)


class Clock:
    """Goes like the real one, and can be set forward as by a stop of the process."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return boot_clock() + self.ahead


class Replica:
    """An elector and the leader's work, which notes when it begins and ends."""

    def __init__(self, server: LeaseServer, name: str) -> None:
        self.clock = Clock()
        self.fence = Fence(self.clock)
        self.stop = asyncio.Event()
        self.begun = 0
        self.works = False
        self.fault: Exception | None = None
        self.elector = Elector(server.client, self.fence, QUICK, namespace="system", identity=name, clock=self.clock)

    async def work(self) -> None:
        self.begun += 1
        self.works = True
        try:
            if self.fault is not None:
                raise self.fault
            await asyncio.Event().wait()
        finally:
            self.works = False


@contextlib.asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one.elector.run(one.work, one.stop)) for one in replicas]
    try:
        yield
    finally:
        for one in replicas:
            one.stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*tasks)


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not look():
            await asyncio.sleep(0.005)


@pytest.fixture
async def server() -> LeaseServer:
    return LeaseServer()


async def test_one_of_two_leads_and_the_other_follows(server: LeaseServer) -> None:
    a, b = Replica(server, "a"), Replica(server, "b")
    async with running(a, b):
        await until(lambda: a.works or b.works)
        renewals = len(server.requests)
        await until(lambda: len(server.requests) > renewals + 40)
        assert (a.begun, b.begun) in ((1, 0), (0, 1))
        assert a.fence.is_open() != b.fence.is_open()


async def test_a_clean_stop_gives_the_lease_back(server: LeaseServer) -> None:
    a = Replica(server, "a")
    async with running(a):
        await until(lambda: a.works)
        assert server.holder == "a"
    assert server.holder == ""
    assert not a.fence.is_open()
    b = Replica(server, "b")
    async with running(b):
        began = boot_clock()
        await until(lambda: b.works)
        assert boot_clock() - began < QUICK.lease_seconds
        assert server.lease is not None
        assert server.lease["spec"]["leaseTransitions"] == 1


async def test_cancelled_as_when_another_part_fails_it_is_given_back_too(server: LeaseServer) -> None:
    a = Replica(server, "a")
    task = asyncio.create_task(a.elector.run(a.work, a.stop))
    await until(lambda: a.works)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.holder == ""
    assert not a.works


async def test_the_end_of_the_work_is_the_end(server: LeaseServer) -> None:
    a = Replica(server, "a")
    a.fault = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        await a.elector.run(a.work, a.stop)
    assert server.holder == ""


async def test_who_cannot_renew_stops_before_the_lease_is_over(server: LeaseServer) -> None:
    a = Replica(server, "a")
    async with running(a):
        await until(lambda: a.works)
        server.reachable.clear()
        cut = boot_clock()
        await until(lambda: not a.fence.is_open())
        assert boot_clock() - cut <= QUICK.renew_seconds + 0.1
        with pytest.raises(NotLeading):
            a.fence.check()
        await until(lambda: not a.works)
        server.reachable.set()
        await until(lambda: a.begun == 2)  # nobody else took it


async def test_who_was_stopped_for_long_asks_for_no_renewal(server: LeaseServer) -> None:
    a = Replica(server, "a")
    async with running(a):
        await until(lambda: a.works)
        server.write({"holderIdentity": "b", "leaseDurationSeconds": 60, "renewTime": "now"})
        before = len(server.requests)
        a.clock.ahead += 10
        assert not a.fence.is_open()
        await until(lambda: not a.works)
        await until(lambda: len(server.requests) > before + 3)
        assert {method for method, _ in server.requests[before:]} == {"GET"}
    assert server.holder == "b"


async def test_a_lease_that_another_took_is_lost_at_the_next_renewal(server: LeaseServer) -> None:
    a = Replica(server, "a")
    async with running(a):
        await until(lambda: a.works)
        server.write({"holderIdentity": "b", "leaseDurationSeconds": 60, "renewTime": "now"})
        await until(lambda: not a.works)
        assert not a.fence.is_open()
    assert server.holder == "b"


async def test_a_renewal_without_an_answer_is_found_out(server: LeaseServer) -> None:
    a = Replica(server, "a")
    async with running(a):
        await until(lambda: a.works)
        server.lossy = True
        before = len(server.requests)
        await until(lambda: len(server.requests) > before)
        server.lossy = False
        count = len(server.requests)
        await until(lambda: len(server.requests) > count + 10)
        assert a.begun == 1


async def test_a_deleted_lease_is_made_again_by_its_holder(server: LeaseServer) -> None:
    a, b = Replica(server, "a"), Replica(server, "b")
    async with running(a):
        await until(lambda: a.works)
        async with running(b):
            await until(lambda: len([one for one in server.requests if one[0] == "GET"]) > 3)
            server.lease = None
            await until(lambda: server.holder == "a")
            assert (a.begun, b.begun) == (1, 0)


async def test_no_two_work_at_once_while_the_server_comes_and_goes(server: LeaseServer) -> None:
    replicas = [Replica(server, name) for name in "abc"]
    async with running(*replicas):
        for _ in range(3):
            await until(lambda: any(one.works for one in replicas))
            server.reachable.clear()
            await until(lambda: not any(one.works for one in replicas))
            assert not any(one.fence.is_open() for one in replicas)
            server.reachable.set()
            await until(lambda: any(one.works for one in replicas))
            assert sum(one.fence.is_open() for one in replicas) == 1
