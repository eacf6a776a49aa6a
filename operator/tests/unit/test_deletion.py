"""What is said of a pool that is deleted."""

from __future__ import annotations

import httpx2 as httpx

from kvpool_operator.kube import POOL
from kvpool_operator.status.observed import Consumer

from .running import SPEC, RunningPool


def consumer(pod: str, *, workload: str = "", mark: str = "team/demo@h", skip: str = "") -> Consumer:
    pool = ("team", "demo")
    return Consumer("team", pod, pool, mark=mark, skip=skip, version=1, workload=workload)


def test_a_pool_in_use_is_told_once() -> None:
    pool = RunningPool(SPEC)
    uid = pool.server.get(POOL, "team", "demo")["metadata"]["uid"]
    pool.consumers = (
        consumer("web-1", workload="Deployment web"),
        consumer("web-2", workload="Deployment web"),
        consumer("alone"),
        consumer("skipped", mark="", skip="PoolMissing"),
    )
    pool.reconcile()
    pool.delete()
    pool.reconcile(3)
    (event,) = (event for event in pool.events() if event["reason"] == "DeletedInUse")
    assert event["note"].endswith("these go on without it: Deployment web, Pod alone")
    assert event["type"] == "Warning"
    assert event["regarding"]["uid"] == uid
    assert (event["regarding"]["namespace"], event["regarding"]["name"]) == ("team", "demo")


def test_a_pool_without_users_goes_silently() -> None:
    pool = RunningPool(SPEC)
    pool.delete()
    pool.reconcile()
    assert pool.events() == []


def test_a_pool_that_is_deleted_while_it_is_reconciled_is_not_brought_back() -> None:
    """Kubernetes deletes the children behind it, and the watches of their kinds are the first to tell."""
    pool = RunningPool(SPEC)
    assert pool.server.children()
    gone = POOL.object_path("team", "demo")

    def deleted_when_read(number: int, request: httpx.Request) -> httpx.Response | None:
        if request.url.path != gone or gone not in pool.server.objects:
            return None
        answer = httpx.Response(200, json=pool.server.objects[gone])
        pool.lose_children()
        pool.delete()
        return answer

    pool.server.fault = deleted_when_read
    pool.reconcile()
    assert gone not in pool.server.objects
    assert pool.server.children() == {}
