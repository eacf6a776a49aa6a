"""What the demo promises, judged from steps that are made up."""

from __future__ import annotations

import dataclasses
import json

import pytest

from e2e.demo import report
from e2e.demo.steps import Step
from testkit.http_client import Answer
from testkit.oracle import Verdict

FINE = Verdict("one text per prompt", ())
SECONDS = {
    "cold_s": 7.0, "device_s": 0.05, "cpu_tier_s": 0.2, "other_engine_s": 0.4, "restarted_s": 0.4,
    "store_lost_fresh_s": 7.6, "store_lost_s": 7.4, "store_gone_s": 7.1, "store_back_s": 0.5,
}  # fmt: skip
COMPUTED = ("cold_s", "store_lost_fresh_s", "store_lost_s", "store_gone_s")


def steps(beside_s: float | None = None, **changes: float) -> list[Step]:
    """The demo's steps, one answer each; a step that computes has no hit, the others have a full one. ``beside_s``: what
    computing took at the time of the steps with a dead store; absent: as long as in the first one."""
    made = []
    seconds_of = SECONDS | changes
    for key, seconds in seconds_of.items():
        cached = 0 if key in COMPUTED else 960
        computed = [beside_s or seconds_of["cold_s"]] if key in report.LOST_STEPS else []
        made.append(
            Step(key, f"step {key}", "", [(0, Answer(seconds, seconds, "text", 1000, cached))], [960], computed)
        )
    return made


def test_promises_that_came_true() -> None:
    assert report.failures(steps(), FINE) == []


@pytest.mark.parametrize("key", report.LOST_STEPS)
@pytest.mark.parametrize(("cold", "most"), [(7.0, 10.5), (0.4, 0.9)])
def test_a_dead_store_may_cost_half_of_cold_or_half_a_second(key: str, cold: float, most: float) -> None:
    quick = dict.fromkeys(report.LOST_STEPS, cold) | {"cpu_tier_s": 0.01, "other_engine_s": 0.01}
    assert report.failures(steps(cold_s=cold, **(quick | {key: most - 0.01})), FINE) == []
    (fault,) = report.failures(steps(cold_s=cold, **(quick | {key: most + 0.01})), FINE)
    assert fault.startswith(f"step {key}: ")


def test_a_host_that_became_slow_is_no_fault_of_the_store() -> None:
    lost = dict.fromkeys(report.LOST_STEPS, 20.0)
    assert report.failures(steps(beside_s=14.0, **lost), FINE) == []
    assert len(report.failures(steps(beside_s=7.0, **lost), FINE)) == 3


def test_a_hit_is_a_share_of_cold_or_little_beyond_the_device() -> None:
    assert len(report.failures(steps(cpu_tier_s=0.5), FINE)) == 1  # of 7 s
    fast = dict.fromkeys(report.LOST_STEPS, 0.5)
    assert report.failures(steps(cold_s=0.5, cpu_tier_s=0.2, **fast), FINE) == []  # 0.15 s beyond the device
    assert len(report.failures(steps(cold_s=0.5, cpu_tier_s=0.3, **fast), FINE)) == 1


def test_a_wrong_text_and_half_a_hit_are_told() -> None:
    half = [
        dataclasses.replace(step, answers=[(0, Answer(0.4, 0.4, "text", 1000, 480))])
        if step.key == "store_back_s"
        else step
        for step in steps()
    ]
    told = report.failures(half, Verdict("rule", ("step 3: another text",)))
    assert told == ["step 3: another text", "step store_back_s: 50.0% of whole chunks cached, 99% expected"]


@pytest.mark.parametrize(("stumbles", "told"), [(2, 0), (3, 1)])
def test_a_store_that_stood_still_for_a_moment_is_no_fault(stumbles: int, told: int) -> None:
    """Seen on a machine that was busy with four other jobs: one prompt of five got half of its hit."""
    made = steps()
    (step,) = [one for one in made if one.key == "other_engine_s"]
    cached = [480] * stumbles + [960] * (5 - stumbles)
    step.answers = [(number, Answer(0.4, 0.4, "text", 1000, tokens)) for number, tokens in enumerate(cached)]
    step.cacheable = [960] * 5
    assert len(report.failures(made, FINE)) == told


def test_every_cold_prompt_has_to_be_cold() -> None:
    made = steps()
    made[0].answers = [(number, Answer(7.0, 7.0, "text", 1000, 0)) for number in range(4)]
    made[0].answers.append((4, Answer(7.0, 7.0, "text", 1000, 960)))
    made[0].cacheable = [960] * 5
    assert len(report.failures(made, FINE)) == 1


def test_the_table_names_the_rule_and_fits_a_terminal() -> None:
    lines = report.table(steps(), FINE).splitlines()
    assert lines[-1] == "texts: 9 of 9 right; rule: one text per prompt"
    assert max(map(len, lines)) <= 100


def test_machines_read_medians_and_samples() -> None:
    figures = json.loads(report.figures(steps(), FINE).removeprefix("demo-figures: "))
    assert figures["store_lost_s"] == 7.4
    assert figures["samples"]["store_lost_s"] == [7.4]
    assert figures["share_of_lost_limit"]["store_lost_s"] == round(7.4 / 10.5, 3)
    assert figures["computed_beside_s"]["store_lost_s"] == [7.0]
