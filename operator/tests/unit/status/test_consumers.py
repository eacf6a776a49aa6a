"""What is said about Pods of others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kvpool_operator.desired import connector_files
from kvpool_operator.status.fold import build_status
from kvpool_operator.status.observed import Consumer, Observed

from ..conftest import MakePool

SPEC: dict[str, Any] = {"tiers": {"cpu": {"size": "1Gi"}}}


@pytest.fixture
def seen(make_pool: MakePool) -> Observed:
    return Observed(generation=1, pool=make_pool(SPEC))


def consumer(pod: str, *, mark: str = "", skip: str = "") -> Consumer:
    return Consumer("team", pod, ("team", "demo"), mark, skip, 1)


def status(seen: Observed, *consumers: Consumer) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The condition, Ready, and the whole status."""
    made = build_status(dataclasses.replace(seen, consumers=consumers), {}, "t")
    conditions = {one["type"]: one for one in made["conditions"]}
    return conditions["InjectionReady"], conditions["Ready"], made


def mark(seen: Observed) -> str:
    assert seen.pool is not None
    return f"team/demo@{connector_files.config_hash(seen.pool)}"


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
