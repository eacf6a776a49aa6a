"""What is said about users' Pods."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kvpool_operator.desired import connector_files
from kvpool_operator.status.consumers import waiting
from kvpool_operator.status.events import of
from kvpool_operator.status.fold import build_status
from kvpool_operator.status.observed import (
    Consumer,
    EngineSays,
    EngineState,
    Observed,
    Seen,
    StoreProbe,
    StoreState,
    Unanswered,
)

from ..conftest import MakePool

SPEC: dict[str, Any] = {"tiers": {"cpu": {"size": "1Gi"}}}


@pytest.fixture
def seen(make_pool: MakePool) -> Observed:
    pool = make_pool(SPEC)
    return Observed(generation=1, pool=pool, config_hash=connector_files.config_hash(pool))


CRASH = "container main ended: Error, exit code 1"


def consumer(
    pod: str,
    *,
    mark: str = "",
    skip: str = "",
    seen: Seen = Seen.READY,
    crash: str = "",
    says: EngineSays | None = None,
) -> Consumer:
    return Consumer("team", pod, ("team", "demo"), mark, skip, 1, seen=seen, crash=crash, says=says)


ACTIVE = EngineSays(EngineState.ACTIVE, "switched on by the environment")


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
    assert condition["message"] == ("users' Pods: 2 are ready with it, and their engines were not heard")


def test_only_engines_that_say_so_use_the_pool(seen: Observed) -> None:
    one, other = (consumer(name, mark=mark(seen), says=ACTIVE) for name in "ab")
    condition, _, made = status(seen, one, other)
    assert (condition["status"], condition["reason"]) == ("True", "Active")
    assert condition["message"] == "2 users' Pods use the pool, as their engines say"
    assert {(row["state"], row["reason"]) for row in made["consumers"]} == {("Active", ACTIVE.reason)}
    condition, _, _ = status(seen, one, consumer("b", mark=mark(seen)))
    assert (condition["status"], condition["reason"]) == ("True", "Injected")
    assert condition["message"].startswith("1 users' Pods use the pool, as their engines say; ")


@pytest.mark.parametrize(
    ("says", "state", "reason", "text"),
    [
        (EngineSays(EngineState.SKIPPED, "it has NIXL"), "Skipped", "PodsSkipped", "the cache: it has NIXL"),
        (EngineSays(EngineState.DISABLED, "a fault"), "Disabled", "PodsDisabled", "the cache: a fault"),
        (EngineSays(EngineState.ABSENT, ""), "Disabled", "PodsDisabled", "knows nothing of kvpool"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_an_engine_that_says_that_it_has_no_cache(
    seen: Observed, says: EngineSays, state: str, reason: str, text: str, old: bool
) -> None:
    marked = "team/demo@old" if old else mark(seen)
    without = consumer("z", mark=marked, says=says)
    condition, ready, made = status(seen, consumer("a", mark=mark(seen), says=ACTIVE), without)
    assert (condition["status"], condition["reason"]) == ("False", reason)
    assert text in condition["message"]
    assert ready["status"] == "True"
    assert [row["state"] for row in made["consumers"]] == [state, "Active"]


def test_an_engine_of_an_older_configuration_is_outdated_though_active(seen: Observed) -> None:
    _, _, made = status(seen, consumer("a", mark="team/demo@old", says=ACTIVE))
    assert [row["state"] for row in made["consumers"]] == ["Outdated"]


@pytest.mark.parametrize("unseen", [Seen.NOT_READY, Seen.RAY])
def test_only_pods_that_were_seen_ready_use_the_pool(seen: Observed, unseen: Seen) -> None:
    written = consumer("b", mark=mark(seen), seen=unseen)
    condition, _, made = status(seen, consumer("a", mark=mark(seen)), written)
    assert (condition["status"], condition["reason"]) == ("True", "Written")
    assert condition["message"] == (
        "users' Pods: 1 are ready with it, and their engines were not heard, 1 were changed and not seen ready yet"
    )
    assert [one["state"] for one in made["consumers"]] == ["Written", "Injected"]
    assert made["consumers"][0]["reason"].startswith("changed at its creation; ")
    condition, _, _ = status(seen, written)
    assert condition["message"] == "users' Pods: 1 were changed and not seen ready yet"


@pytest.mark.parametrize("config_hash", ["", "@old"])
def test_a_pod_that_crashes_since_it_was_changed(seen: Observed, config_hash: str) -> None:
    crashed = consumer("z", mark=f"team/demo{config_hash}", seen=Seen.CRASHED, crash=CRASH)
    crashed = dataclasses.replace(crashed, workload="Deployment web")
    condition, ready, made = status(seen, consumer("a"), crashed)
    assert (condition["status"], condition["reason"]) == ("False", "PodsFailing")
    assert condition["message"].startswith(f"1 of 2 Pods: team/z: {CRASH}; see its log")
    assert "remove the annotation kvpool.dev/pool from Deployment web to run without the cache" in condition["message"]
    assert ready["status"] == "True"
    assert [one["state"] for one in made["consumers"]] == ["Failing", "Missed"]


def test_what_the_owner_was_warned_of_stays_in_the_status(seen: Observed) -> None:
    warned = dataclasses.replace(consumer("a", mark=mark(seen)), warning="PYTHONHASHSEED=1 is replaced")
    condition, _, made = status(seen, warned)
    assert condition["reason"] == "Injected"
    assert made["consumers"][0]["state"] == "Injected"
    assert made["consumers"][0]["reason"].endswith(f"; {warned.warning}")
    old = dataclasses.replace(warned, mark="team/demo@old")
    assert status(seen, old)[2]["consumers"][0]["reason"].endswith(f"restart the Pod when it suits; {warned.warning}")


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
def test_a_pod_that_needs_a_hand(seen: Observed, values: dict[str, Any], reason: str, truth: str, says: str) -> None:
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


def pods_of(workload: str, count: int, **values: Any) -> list[Consumer]:
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


def test_an_outdated_pod_hides_no_fault_of_the_api_server(seen: Observed) -> None:
    old = consumer("a", mark="team/demo@old")
    condition, _, _ = status(seen, old)
    assert (condition["status"], condition["reason"]) == ("True", "PodsOutdated")
    blind = dataclasses.replace(seen, unanswered=(Unanswered("writing ConfigMap x", "no"),))
    condition, _, _ = status(blind, old)
    assert (condition["status"], condition["reason"]) == ("Unknown", "ApiServerFailing")
