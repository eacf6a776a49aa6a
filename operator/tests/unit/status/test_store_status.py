"""What a user reads about a store of several servers, or about one with limits."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.desired import stores
from kvpool_operator.status.fold import build_status
from kvpool_operator.status.observed import Observed, PodTrouble, StoreProbe, StoreState

from ..conftest import MakePool

NOW = "2030-01-01T00:00:00Z"
HA: dict[str, Any] = {"type": "Mooncake", "mooncake": {"ha": True, "replicas": 2}}


def workload(ready: int, wanted: int) -> dict[str, Any]:
    status = {"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": wanted}
    return {"metadata": {"generation": 1}, "spec": {"replicas": wanted}, "status": status}


def available(make_pool: MakePool, backend: dict[str, Any], **ready: int) -> dict[str, Any]:
    """BackendAvailable with so many Pods ready; all others are."""
    pool = make_pool({"backend": backend}, group_password="g")
    seen = {
        one.name: workload(ready.get(one.name.removeprefix("demo-"), one.replicas), one.replicas)
        for one in stores.workloads(pool)
    }
    status = build_status(Observed(generation=1, pool=pool, workloads=seen), {}, NOW)
    found: dict[str, Any] = next(c for c in status["conditions"] if c["type"] == "BackendAvailable")
    return found


@pytest.mark.parametrize(
    ("members", "reason"), [(3, "StoreReady"), (2, "StoreDegraded"), (1, "EtcdQuorumLost"), (0, "EtcdQuorumLost")]
)
def test_etcd_serves_with_a_majority(make_pool: MakePool, members: int, reason: str) -> None:
    found = available(make_pool, HA, etcd=members)
    assert (found["reason"], found["status"]) == (reason, "False" if reason == "EtcdQuorumLost" else "True")
    if members < 2:
        assert f"{members} of 3 members of etcd are ready, 2 are needed" in found["message"]


@pytest.mark.parametrize(
    ("ready", "reason"),
    [
        ({"sentinel": 2, "store": 2}, "StoreDegraded"),
        ({"sentinel": 1}, "StoreStarting"),
        ({"store": 0}, "StoreStarting"),
        ({}, "StoreReady"),
    ],
    ids=["one of each is missing", "no majority of sentinels", "no server", "whole"],
)
def test_a_group_serves_without_one_of_each(make_pool: MakePool, ready: dict[str, int], reason: str) -> None:
    found = available(make_pool, {"type": "Redis", "mode": "Sentinel"}, **ready)
    assert found["reason"] == reason
    if reason == "StoreDegraded":
        assert "StatefulSet demo-sentinel has 2 of 3 Pods ready" in found["message"]


@pytest.mark.parametrize(
    "change",
    [{"updatedReplicas": 1}, {"replicas": 4}, {"observedGeneration": 0}],
    ids=["old Pods", "a surge", "status about an older spec"],
)
def test_a_group_that_is_not_rolled_out_says_so(make_pool: MakePool, change: dict[str, int]) -> None:
    """It serves; but a new Pod that crashes for ever must not look as if all were well."""
    pool = make_pool({"backend": {"type": "Redis", "mode": "Sentinel"}}, group_password="g")
    seen = {one.name: workload(one.replicas, one.replicas) for one in stores.workloads(pool)}
    seen["demo-sentinel"]["status"] |= change
    trouble = PodTrouble("demo-sentinel-2", "CrashLoopBackOff", "")
    observed = Observed(generation=1, pool=pool, workloads=seen, troubles={"demo-sentinel": (trouble,)})
    (found,) = [c for c in build_status(observed, {}, NOW)["conditions"] if c["type"] == "BackendAvailable"]
    assert (found["status"], found["reason"]) == ("True", "StoreDegraded")
    assert "of 3 Pods ready with the current configuration" in found["message"]
    assert "Pod demo-sentinel-2: CrashLoopBackOff" in found["message"]


def test_a_server_that_goes_is_none_of_an_older_configuration(make_pool: MakePool) -> None:
    """A StatefulSet counts it as ready until its Pod is gone, and no longer among those of its template."""
    pool = make_pool({"backend": {"type": "Redis", "mode": "Sentinel"}}, group_password="g")
    seen = {one.name: workload(one.replicas, one.replicas) for one in stores.workloads(pool)}
    revisions = {"currentRevision": "demo-store-1", "updateRevision": "demo-store-1"}
    seen["demo-store"]["status"] |= {"replicas": 3, "updatedReplicas": 2, **revisions}
    observed = Observed(generation=1, pool=pool, workloads=seen)
    (found,) = [c for c in build_status(observed, {}, NOW)["conditions"] if c["type"] == "BackendAvailable"]
    assert (found["status"], found["reason"]) == ("True", "StoreReady")


def test_lmcaches_server_says_what_it_lacks(make_pool: MakePool) -> None:
    found = available(make_pool, {"type": "LMCacheServer"})
    assert (found["status"], found["reason"]) == ("True", "StoreReady")
    assert "no eviction and no replication" in found["message"]


def test_infinistore_says_that_nobody_ran_it(make_pool: MakePool) -> None:
    own = {"experimental": True, "rdmaResource": "rdma/hca"}
    found = available(make_pool, {"type": "InfiniStore", "image": "i", "infinistore": own})
    assert "never ran it" in found["message"]


@pytest.mark.parametrize(
    ("backend", "state", "fix"),
    [
        (
            {"type": "Redis", "external": {"sentinel": {"masterName": "m", "endpoints": [{"host": "s"}]}}},
            StoreState.UNKNOWN_MASTER,
            "set spec.backend.external.sentinel.masterName",
        ),
        (
            {"type": "Mooncake", "external": {"master": "m:1"}},
            StoreState.UNREACHABLE,
            "check spec.backend.external.master",
        ),
        (
            {"type": "Mooncake", "mooncake": {"ha": True}, "etcd": {"external": {"endpoints": ["e:1"]}}},
            StoreState.NO_QUORUM,
            "correct spec.backend.etcd.external.endpoints",
        ),
    ],
)
def test_the_field_to_correct_is_named(
    make_pool: MakePool, backend: dict[str, Any], state: StoreState, fix: str
) -> None:
    seen = Observed(generation=1, pool=make_pool({"backend": backend}), probe=StoreProbe(state, "said"))
    (found,) = [c for c in build_status(seen, {}, NOW)["conditions"] if c["type"] == "BackendAvailable"]
    assert (found["status"], found["reason"]) == ("False", state.value)
    assert fix in found["message"]
