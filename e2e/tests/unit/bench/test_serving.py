"""How the engine benchmark judges what it measured, and how it sees where tokens came from."""

from __future__ import annotations

import pytest

from bench.serving.client import parse_metrics
from bench.serving.judge import GOALS, Figure, Goal, missed, paired, paired_by_start, verdict
from bench.serving.latency import Gaps, check_traffic, p99, rare, typical
from bench.serving.rounds import check_source

CHUNK = 64
"""Tokens of a chunk of the pool."""
AT_MOST, AT_LEAST = Goal("", 1.0), Goal("", 1.0, at_least=True)
HITS, LOADED = ("vllm:external_prefix_cache_hits_total", ""), "kvpool:loaded_chunks_total"


@pytest.mark.parametrize(
    ("goal", "median", "quartiles", "n", "expected"),
    [
        (AT_MOST, 1.0, (0.9, 1.0, 1.1), 4, "OK"),
        (AT_MOST, 1.09, (1.0, 1.09, 1.2), 4, "NOISE"),  # 0.93 * 0.2 / 2 = 0.093
        (AT_MOST, 1.10, (1.0, 1.10, 1.2), 4, "MISSED"),
        (AT_MOST, 1.09, (1.0, 1.09, 1.2), 16, "MISSED"),  # the same spread of more values says more
        (AT_LEAST, 1.0, (0.9, 1.0, 1.1), 4, "OK"),
        (AT_LEAST, 0.92, (0.8, 0.92, 1.0), 4, "NOISE"),
        (AT_LEAST, 0.5, (0.4, 0.5, 0.6), 4, "MISSED"),
        (AT_MOST, 1.01, (1.01, 1.01, 1.01), 1, "MISSED"),
    ],
)
def test_a_goal_is_missed_beyond_the_medians_uncertainty(
    goal: Goal, median: float, quartiles: tuple[float, float, float], n: int, expected: str
) -> None:
    assert verdict(goal, Figure(median, quartiles, n)) == expected


def test_a_figure_that_was_not_measured_is_missed() -> None:
    good = {key: Figure(goal.limit, (goal.limit,) * 3, 1) for key, goal in GOALS.items()}
    assert missed(good) == []
    good.pop("warm_disk_ratio")
    assert missed(good) == ["warm_disk_ratio"]


def test_quotients_are_of_the_same_prompt() -> None:
    figure = paired([("a", 1.0), ("b", 3.0), ("b", 9.0), ("c", 5.0)], [("b", 3.0), ("a", 2.0)])
    assert figure == Figure(1.0, (0.75, 1.0, 2.0), 3)
    assert paired([("a", 1.0)], [("b", 1.0)]) is None


def test_a_start_counts_once_however_many_prompts_it_had() -> None:
    """Start 1 was slower by a tenth for each of its three prompts; all prompts together would say 1.1."""
    above = [("start 1: 1", 1.1), ("start 1: 2", 2.2), ("start 1: 3", 3.3), ("start 2: 1", 1.0), ("start 3: 1", 0.9)]
    below = [("start 3: 1", 1.0), ("start 2: 1", 1.0), ("start 1: 1", 1.0), ("start 1: 2", 2.0), ("start 1: 3", 3.0)]
    figure = paired_by_start([*above, ("start 4: 1", 9.0)], below)
    assert figure is not None
    assert ([round(quartile, 6) for quartile in figure.quartiles], figure.n) == ([0.95, 1.0, 1.05], 3)
    assert paired_by_start([], below) is None


def test_median_gaps_are_compared_repetition_by_repetition() -> None:
    """The third time the machine was three times as slow for both; all gaps together would say 0.55."""
    busy, quiet = [[1.0, 1.1, 9.0, 1.1, 1.1], [2.2, 2.2], [3.3]], [[1.0], [2.0], [3.0] * 5]
    figure = typical(busy, quiet)
    assert figure is not None
    assert (round(figure.median, 9), figure.n) == (1.1, 3)
    assert typical([], []) is None


def test_rare_gaps_of_all_repetitions_are_judged_together() -> None:
    busy, quiet = Gaps([[1.0] * 99 + [10.0] * 2, [1.0] * 200]), Gaps([[1.0] * 10, [1.0] * 10])
    figure = rare(busy, quiet)
    assert figure is not None
    assert (figure.median, figure.quartiles, figure.n) == (1.0, (3.25, 5.5, 7.75), 2)  # two of 301; two of 101, none
    assert rare(Gaps(), Gaps()) is None
    assert p99([float(number) for number in range(101)]) == 99.0


def test_metrics_by_name_and_tier() -> None:
    text = """# HELP kvpool:loaded_chunks_total Chunks
kvpool:loaded_chunks_total{engine="0",model_name="m",tier="disk"} 3.0
kvpool:loaded_chunks_total{engine="1",model_name="m",tier="disk"} 4.0
kvpool:loaded_chunks_total{engine="0",model_name="m",tier="memory"} 1.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 1.2e+03
"""
    assert parse_metrics(text) == {(LOADED, "disk"): 7.0, (LOADED, "memory"): 1.0, HITS: 1200.0}


def test_tokens_from_another_tier_are_an_error() -> None:
    right = {HITS: 4.0 * CHUNK, (LOADED, "disk"): 4.0}
    check_source("right", "disk", {}, right, 4 * CHUNK, 4)
    check_source("before", "disk", right, {key: 2 * value for key, value in right.items()}, 4 * CHUNK, 4)
    check_source("computed", None, right, right, 0, 0)
    check_source("not ours", "", {}, {HITS: 256.0}, 256, 0)
    for tier, after, tokens in [
        ("memory", right, 4 * CHUNK),
        ("disk", right | {(LOADED, "remote"): 1.0}, 4 * CHUNK),
        ("disk", {(LOADED, "disk"): 4.0}, 4 * CHUNK),  # the device's own cache
        (None, right, 0),
    ]:
        with pytest.raises(RuntimeError, match=r"tokens came|chunks loaded"):
            check_source("wrong", tier, {}, after, tokens, tokens // CHUNK)


def test_traffic_of_another_kind_than_the_conditions_is_an_error() -> None:
    loads = 10 * 1024 // CHUNK
    stored, loaded = ("kvpool:stored_chunks_total", ""), (LOADED, "memory")
    for condition, right in (
        ("busy", {loaded: 0.95 * loads, stored: 10.0}),
        ("stores", {stored: 11.0}),  # one of the stream's own
        ("quiet", {stored: 2.0}),
        ("alone", {}),
    ):
        check_traffic(condition, {}, right, 10, CHUNK)
        check_traffic(condition, right, {key: 2 * value for key, value in right.items()}, 10, CHUNK)
    for condition, wrong in (
        ("busy", {loaded: 0.5 * loads, stored: 10.0}),
        ("busy", {loaded: 1.0 * loads, stored: 5.0}),
        ("stores", {stored: 10.0, loaded: 1.0}),
        ("stores", {}),
        ("quiet", {stored: 10.0}),
        ("quiet", {loaded: 1.0}),
    ):
        with pytest.raises(RuntimeError, match="chunks were"):
            check_traffic(condition, {}, wrong, 10, CHUNK)
