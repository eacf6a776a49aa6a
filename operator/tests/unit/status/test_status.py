"""What a user reads for each thing that can be wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kvpool_operator.desired import desired, engines
from kvpool_operator.status.fold import build_status, same
from kvpool_operator.status.observed import Observed, PodTrouble, Refusal, StoreProbe, StoreState, Unanswered

from ..conftest import MakePool

SPEC: dict[str, Any] = {
    "model": {"name": "m"},
    "backend": {"type": "Redis"},
    "tiers": {"cpu": {"size": "4Gi"}},
    "engines": [{"replicas": 2}],
}
EXTERNAL: dict[str, Any] = {"backend": {"type": "Redis", "external": {"host": "redis.example"}}}
NOW = "2030-01-01T00:00:00Z"


def deployment(
    ready: int, wanted: int, *, updated: int | None = None, made: int | None = None, generation: int = 1
) -> dict[str, Any]:
    return {
        "metadata": {"generation": 1},
        "spec": {"replicas": wanted},
        "status": {
            "observedGeneration": generation,
            "readyReplicas": ready,
            "updatedReplicas": ready if updated is None else updated,
            "replicas": wanted if made is None else made,
        },
    }


@pytest.fixture
def healthy(make_pool: MakePool) -> Observed:
    return Observed(
        generation=3,
        pool=make_pool(SPEC),
        config_hash="h1",
        workloads={"demo-store": deployment(1, 1), "demo-engine": deployment(2, 2)},
        waiting=(),
    )


def conditions(seen: Observed) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in build_status(seen, {}, NOW)["conditions"]}


def test_a_healthy_pool(healthy: Observed) -> None:
    status = build_status(healthy, {}, NOW)
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ["Ready", "ConfigRendered", "SizingValid", "BackendAvailable", "EnginesReady", "InjectionReady", "UpToDate"],
        "True",
    )
    assert all(condition["observedGeneration"] == 3 for condition in status["conditions"])
    assert status["engines"] == [{"name": "engine", "ready": 2, "desired": 2}]
    assert status["enginesReady"] == "2/2"
    assert status["store"] == "Redis"
    assert status["endpoints"] == {
        "store": "demo-store.team.svc.cluster.local:6379",
        "engines": [{"name": "engine", "url": "http://demo-engine.team.svc.cluster.local:8000"}],
    }
    assert status["config"] == {"hash": "h1"}


def test_an_autoscaler_says_how_many_pods_there_are_to_be(healthy: Observed) -> None:
    scaled = deployment(6, 7, updated=7)
    entry = {"manager": "kube-controller-manager", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    scaled["metadata"]["managedFields"] = [entry]
    workloads = {**healthy.workloads, "demo-engine": scaled}
    status = build_status(dataclasses.replace(healthy, workloads=workloads), {}, NOW)
    assert status["engines"] == [{"name": "engine", "ready": 6, "desired": 7}]
    assert status["enginesReady"] == "6/7"
    found = conditions(dataclasses.replace(healthy, workloads=workloads))["EnginesReady"]
    assert found["message"] == "Pods ready with the current configuration: engine 6/7"


def test_an_engine_limit_below_its_tiers_shows_the_sum_and_the_fix(make_pool: MakePool, healthy: Observed) -> None:
    pool = make_pool({**SPEC, "engines": [{"replicas": 2, "resources": {"limits": {"memory": "4Gi"}}}]})
    found = conditions(dataclasses.replace(healthy, pool=pool))
    assert (found["SizingValid"]["status"], found["SizingValid"]["reason"]) == ("False", "EngineMemoryTooSmall")
    message = found["SizingValid"]["message"]
    assert "4 GiB but needs 4 GiB CPU tier + 2 GiB vLLM + 1 GiB vLLM's own KV cache on CPU = 7 GiB" in message
    assert "raise spec.engines[0].resources.limits.memory to at least 7Gi, or lower spec.tiers.cpu.size" in message
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "EngineMemoryTooSmall")


def test_an_engine_beside_lmcaches_server_needs_no_room_for_the_tier(make_pool: MakePool, healthy: Observed) -> None:
    spec = {**SPEC, "connector": {"type": "LMCacheMP"}}
    enough = make_pool({**spec, "engines": [{"resources": {"limits": {"memory": "3Gi"}}}]})
    assert conditions(dataclasses.replace(healthy, pool=enough))["SizingValid"]["status"] == "True"
    less = make_pool({**spec, "engines": [{"resources": {"limits": {"memory": "2Gi"}}}]})
    found = conditions(dataclasses.replace(healthy, pool=less))["SizingValid"]
    assert found["reason"] == "EngineMemoryTooSmall"
    assert found["message"].endswith("raise spec.engines[0].resources.limits.memory to at least 3Gi")


@pytest.mark.parametrize(("memory", "reason"), [("5Gi", "Fits"), ("4Gi", "ConnectorServerMemoryTooSmall")])
def test_lmcaches_server_has_room_for_the_tier(
    make_pool: MakePool, healthy: Observed, memory: str, reason: str
) -> None:
    containers = [{"name": "lmcache", "resources": {"limits": {"memory": memory}}}]
    pool = make_pool(
        {**SPEC, "connector": {"type": "LMCacheMP", "server": {"podTemplate": {"spec": {"containers": containers}}}}}
    )
    (server,) = (one for one in desired(pool) if one["kind"] == "DaemonSet")
    found = conditions(dataclasses.replace(healthy, pool=pool, daemon_sets={"demo-lmcache": server}))["SizingValid"]
    assert found["reason"] == reason
    if reason != "Fits":
        assert "may use 4 GiB on each node but needs 5 GiB" in found["message"]
        assert "spec.connector.server.podTemplate to at least 5Gi" in found["message"]


def test_the_room_of_a_server_that_could_not_be_listed_is_not_known(make_pool: MakePool, healthy: Observed) -> None:
    pool = make_pool({**SPEC, "connector": {"type": "LMCacheMP"}})
    call = Unanswered("reading the pool's objects", "no")
    seen = dataclasses.replace(healthy, pool=pool, children_known=False, unanswered=(call,))
    assert conditions(seen)["SizingValid"]["status"] == "Unknown"


def test_a_limit_that_is_just_enough_passes(make_pool: MakePool, healthy: Observed) -> None:
    pool = make_pool({**SPEC, "engines": [{"replicas": 2, "resources": {"limits": {"memory": "7Gi"}}}]})
    assert conditions(dataclasses.replace(healthy, pool=pool))["SizingValid"]["status"] == "True"


def template(**limits: str | None) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "engine", "resources": {"limits": limits}}]}}


@pytest.mark.parametrize(
    ("own", "chart", "reason", "place"),
    [
        (template(memory="4Gi"), {}, "EngineMemoryTooSmall", "raise spec.engines[0].podTemplate.spec.containers[name="),
        ({}, template(memory="4Gi"), "EngineMemoryTooSmall", "raise the chart's engineDefaults.podTemplate.spec."),
        (template(memory="8Gi"), template(memory="4Gi"), "Fits", ""),
        (template(memory=None), template(memory="4Gi"), "Fits", ""),
        ({"spec": {"containers": [{"name": "engine", "resources": 3}]}}, {}, "Fits", ""),
        ({"spec": {"containers": None}}, {}, "Fits", ""),
    ],
    ids=["pool", "chart", "the pool's counts", "taken away", "not resources", "no containers"],
)
def test_a_limit_in_a_pod_template_is_what_counts(
    make_pool: MakePool, healthy: Observed, own: dict[str, Any], chart: dict[str, Any], reason: str, place: str
) -> None:
    engine = {"replicas": 2, "resources": {"limits": {"memory": "16Gi"}}, "podTemplate": own}
    pool = make_pool({**SPEC, "engines": [engine]}, settings={"engineDefaults": {"podTemplate": chart}})
    found = conditions(dataclasses.replace(healthy, pool=pool))["SizingValid"]
    assert found["reason"] == reason
    assert place in found["message"]
    built = engines.build_deployment(pool, pool.spec.engines[0])["spec"]["template"]
    assert engines.built_resources(pool, pool.spec.engines[0]) == engines.resources_in(built)


def test_a_limit_in_a_pod_template_wins_over_one_that_is_too_small(make_pool: MakePool, healthy: Observed) -> None:
    engine = {"resources": {"limits": {"memory": "4Gi"}}, "podTemplate": template(memory="8Gi")}
    pool = make_pool({**SPEC, "engines": [engine]})
    assert conditions(dataclasses.replace(healthy, pool=pool))["SizingValid"]["reason"] == "Fits"


@pytest.mark.parametrize(
    ("state", "reason", "fix"),
    [
        (StoreState.AUTH_FAILED, "AuthFailed", "correct the password in the Secret"),
        (StoreState.UNREACHABLE, "Unreachable", "check spec.backend.external.host and port"),
        (StoreState.NO_DATABASE, "NoDatabase", "correct spec.backend.external.database"),
        (StoreState.SECRET_MISSING, "SecretMissing", "create it in the pool's namespace"),
    ],
)
def test_an_external_store_that_does_not_work(make_pool: MakePool, state: StoreState, reason: str, fix: str) -> None:
    seen = Observed(generation=1, pool=make_pool(EXTERNAL), probe=StoreProbe(state, "redis.example:6379 …"))
    found = conditions(seen)["BackendAvailable"]
    assert (found["status"], found["reason"]) == ("False", reason)
    assert fix in found["message"]
    assert "redis.example:6379 …" in found["message"]


def test_an_external_store_that_works(make_pool: MakePool) -> None:
    probe = StoreProbe(StoreState.AVAILABLE, "")
    status = build_status(Observed(generation=1, pool=make_pool(EXTERNAL), probe=probe), {}, NOW)
    assert status["conditions"][0]["status"] == "True"
    assert status["endpoints"]["store"] == "redis.example:6379"
    assert status["store"] == "Redis (external)"


def test_a_store_that_starts_and_a_store_that_fails(healthy: Observed) -> None:
    starting = dataclasses.replace(healthy, workloads={**healthy.workloads, "demo-store": deployment(0, 1)})
    assert conditions(starting)["BackendAvailable"]["reason"] == "StoreStarting"
    trouble = PodTrouble("demo-store-x", "ImagePullBackOff", "no such image")
    failing = dataclasses.replace(starting, troubles={"demo-store": (trouble,)})
    assert conditions(failing)["BackendAvailable"]["reason"] == "StorePodFailing"
    assert "Pod demo-store-x: ImagePullBackOff: no such image" in conditions(failing)["BackendAvailable"]["message"]


@pytest.mark.parametrize(
    "engine",
    [
        deployment(1, 2),
        deployment(2, 2, updated=1),
        deployment(2, 2, updated=1, made=3),
        deployment(2, 2, updated=2, made=3),
        deployment(2, 2, updated=2, made=4),
        deployment(2, 2, generation=0),
        {},
    ],
    ids=[
        "one Pod missing",
        "old template",
        "a surge whose Pod fails",
        "one of two fails",
        "both fail beside the old ones",
        "status about an older spec",
        "no Deployment",
    ],
)
def test_engines_are_not_ready(healthy: Observed, engine: dict[str, Any]) -> None:
    seen = dataclasses.replace(healthy, workloads={**healthy.workloads, "demo-engine": engine})
    found = conditions(seen)
    assert (found["EnginesReady"]["status"], found["EnginesReady"]["reason"]) == ("False", "EnginesStarting")
    assert found["Ready"]["status"] == "False"


@pytest.mark.parametrize(("ready", "count"), [(1, "0"), (2, "1")])
def test_a_new_pod_that_fails_beside_a_ready_old_one_is_told(healthy: Observed, ready: int, count: str) -> None:
    """A Deployment that surges keeps the old Pod until the new one is ready, which may be never."""
    late = deployment(ready, 2, updated=ready, made=ready + 1)
    trouble = PodTrouble("demo-engine-x", "CrashLoopBackOff", "")
    seen = dataclasses.replace(healthy, workloads={**healthy.workloads, "demo-engine": late})
    assert build_status(seen, {}, NOW)["engines"][0]["ready"] == int(count)
    found = conditions(dataclasses.replace(seen, troubles={"demo-engine": (trouble,)}))
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "EnginePodsFailing")


def test_a_lone_store_is_not_ready_while_its_new_pod_fails(healthy: Observed) -> None:
    late = deployment(1, 1, updated=1, made=2)
    seen = dataclasses.replace(healthy, workloads={**healthy.workloads, "demo-store": late})
    assert conditions(seen)["BackendAvailable"]["reason"] == "StoreStarting"


def test_a_refused_child_is_named_with_the_api_servers_words(healthy: Observed) -> None:
    refusal = Refusal("Deployment", "demo-engine", "spec.template.spec.nope: field not declared", "engine")
    found = conditions(dataclasses.replace(healthy, refusals=(refusal,)))
    assert found["EnginesReady"]["reason"] == "ApplyRefused"
    assert "Deployment demo-engine: spec.template.spec.nope" in found["EnginesReady"]["message"]
    assert found["ConfigRendered"]["status"] == "True"


def test_a_spec_that_cannot_be_read() -> None:
    found = conditions(Observed(generation=9, pool=None, invalid="spec.backend: bad"))
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "InvalidSpec")
    assert "spec.backend: bad" in found["ConfigRendered"]["message"]
    assert found["EnginesReady"]["status"] == "Unknown"


def test_a_paused_pool_says_so(make_pool: MakePool, healthy: Observed) -> None:
    paused = dataclasses.replace(healthy, pool=make_pool({**SPEC, "paused": True}))
    ready = conditions(paused)["Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "Paused")
    assert "spec.paused" in ready["message"]


def test_a_transition_time_changes_with_the_status_only(healthy: Observed) -> None:
    before = build_status(healthy, {}, "2020-01-01T00:00:00Z")
    starting = dataclasses.replace(
        healthy, generation=4, workloads={**healthy.workloads, "demo-engine": deployment(1, 2)}
    )
    after = {c["type"]: c for c in build_status(starting, before, NOW)["conditions"]}
    assert after["EnginesReady"]["lastTransitionTime"] == NOW
    assert after["BackendAvailable"]["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert after["BackendAvailable"]["observedGeneration"] == 4


def test_the_same_status_at_another_time_is_the_same(healthy: Observed) -> None:
    one, two = build_status(healthy, {}, "2020-01-01T00:00:00Z"), build_status(healthy, {}, NOW)
    assert same(one, two)
    assert not same(one, {**two, "enginesReady": "1/2"})
    assert not same({}, two)
