"""What is said about Pods of others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kvpool_operator.desired import connector_files
from kvpool_operator.status.consumers import waiting
from kvpool_operator.status.events import of
from kvpool_operator.status.fold import build_status
from kvpool_operator.status.observed import Consumer, Observed, StoreProbe, StoreState

from ..conftest import MakePool

SPEC: dict[str, Any] = {"tiers": {"cpu": {"size": "1Gi"}}}


@pytest.fixture
def seen(make_pool: MakePool) -> Observed:
    pool = make_pool(SPEC)
    return Observed(generation=1, pool=pool, config_hash=connector_files.config_hash(pool))


def consumer(pod: str, *, mark: str = "", skip: str = "") -> Consumer:
    return Consumer("team", pod, ("team", "demo"), mark, skip, 1)


def status(seen: Observed, *consumers: Consumer) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The condition, Ready, and the whole status."""
    made = build_status(dataclasses.replace(seen, consumers=consumers), {}, "t")
    conditions = {one["type"]: one for one in made["conditions"]}
    return conditions["InjectionReady"], conditions["Ready"], made


def mark(seen: Observed) -> str:
    return f"team/demo@{seen.config_hash}"


def test_no_pods(seen: Observed) -> None:
    condition, _, made = status(seen)
    assert (condition["status"], condition["reason"]) == ("True", "NoConsumers")
    assert (made["consumers"], made["consumerCount"]) == ([], 0)


def test_all_injected(seen: Observed) -> None:
    condition, _, _ = status(seen, consumer("a", mark=mark(seen)), consumer("b", mark="team/demo"))
    assert (condition["status"], condition["reason"]) == ("True", "Injected")


@pytest.mark.parametrize(
    ("values", "reason", "truth", "says"),
    [
        ({}, "PodsMissed", "False", "team/a: nothing was injected"),
        ({"skip": "NoVLLM: do this"}, "PodsSkipped", "False", "team/a: NoVLLM: do this"),
        ({"skip": "PoolMissing: x"}, "PodsSkipped", "False", "started before the pool was there: restart the Pod"),
        ({"mark": "team/demo@old"}, "PodsOutdated", "True", "restart the Pod when it suits"),
        ({"mark": "team/other@x"}, "PodsOutdated", "True", "older configuration"),
    ],
)
def test_a_pod_that_needs_a_hand(seen: Observed, values: dict[str, str], reason: str, truth: str, says: str) -> None:
    condition, ready, _ = status(seen, consumer("a", **values), consumer("z", mark=mark(seen)))
    assert (condition["status"], condition["reason"]) == (truth, reason)
    assert condition["message"].startswith("1 of 2 Pods: ")
    assert says in condition["message"]
    assert ready["status"] == "True", "a Pod of others must not make the pool unready"


@pytest.mark.parametrize(
    ("skip", "text"),
    [
        ("PoolMissing: x", "started before the pool was there"),
        ("NoAnswer: x", "started while the API server did not answer"),
        ("NamespaceNotAllowed: x", "started before its namespace was in spec.injection.allowedNamespaces"),
        ("InjectionOff: x", "started while spec.injection.mode was Off"),
        ("OtherConnectorType: x", "started while spec.connector.type was another one"),
    ],
)
def test_a_reason_that_holds_no_longer(seen: Observed, skip: str, text: str) -> None:
    _, _, made = status(seen, dataclasses.replace(consumer("a", skip=skip), workload="Deployment web"))
    (one,) = made["consumers"]
    assert one["reason"] == f"{text}: restart the Pod"
    assert one["workload"] == "Deployment web"
    assert made["workloadsWaiting"] == 1


def pods_of(workload: str, count: int, **values: str) -> list[Consumer]:
    return [
        dataclasses.replace(consumer(f"{workload}-{number}", **values), workload=workload) for number in range(count)
    ]


def test_workloads_and_not_pods_wait_for_a_restart(seen: Observed) -> None:
    them = [
        *pods_of("Deployment a", 3, skip="PoolMissing: x"),
        *pods_of("Deployment b", 2),
        *pods_of("Deployment c", 2, skip="NoVLLM: x"),
        *pods_of("Deployment d", 2, mark="team/demo@old"),
        *pods_of("Deployment e", 2, mark=mark(seen)),
    ]
    assert status(seen, *them)[2]["workloadsWaiting"] == 2
    assert waiting(dataclasses.replace(seen, consumers=tuple(them))) == ("team/Deployment a", "team/Deployment b")


def test_none_waits_for_a_pool_that_can_not_be_used(make_pool: MakePool, seen: Observed) -> None:
    them = tuple(pods_of("Deployment a", 1, skip="PoolNotReady: x"))
    lost = StoreProbe(StoreState.SECRET_MISSING, "x")
    off = make_pool({**SPEC, "injection": {"mode": "Off"}})
    for unusable in (
        dataclasses.replace(seen, probe=lost),
        dataclasses.replace(seen, invalid_config="x"),
        dataclasses.replace(seen, pool=off),
    ):
        assert waiting(dataclasses.replace(unusable, consumers=them)) == ()


def test_an_event_is_for_a_change_of_meaning(seen: Observed) -> None:
    def events(before: int | None, *them: Consumer) -> list[tuple[str, str]]:
        now = dataclasses.replace(seen, consumers=them)
        previous = {} if before is None else {"workloadsWaiting": before}
        return [(one.reason, one.note) for one in of(now, previous, build_status(now, previous, "t"))]

    three = [one for name in "abc" for one in pods_of(f"Deployment {name}", 2, skip="PoolMissing: canary-password")]
    ((reason, note),) = events(None, *three[:2])
    assert reason == "RestartNeeded"
    assert note == (
        "1 workload that names this pool runs without the cache and would get it: restart team/Deployment a"
    )
    ((_, note),) = events(2, *three, *pods_of("StatefulSet z", 1))
    assert note.startswith("4 workloads that name this pool run without the cache")
    assert note.endswith("team/Deployment a, team/Deployment b, team/Deployment c and 1 more")
    assert "canary" not in note
    assert events(3, *three) == [], "nothing new"
    assert events(3, *three[:2]) == [], "some were restarted"
    assert [reason for reason, _ in events(3)] == ["NoRestartNeeded"]
    assert events(0) == []
    assert events(None) == []


def test_the_list_is_bounded_and_shows_those_that_need_a_hand_first(seen: Observed) -> None:
    many = [consumer(f"p{number}", mark=mark(seen)) for number in range(200)]
    condition, _, made = status(seen, *many, consumer("zz"), consumer("zy", skip="NoVLLM: x"))
    assert made["consumerCount"] == 202
    assert len(made["consumers"]) == 50
    assert [(one["pod"], one["state"]) for one in made["consumers"][:3]] == [
        ("zz", "Missed"), ("zy", "Skipped"), ("p0", "Injected"),
    ]  # fmt: skip
    assert len(condition["message"]) < 500


def test_the_message_names_three_and_counts_the_rest(seen: Observed) -> None:
    condition, _, _ = status(seen, *(consumer(f"p{number}") for number in range(9)))
    assert condition["message"].count("nothing was injected") == 3
    assert condition["message"].endswith("; and 6 more")
