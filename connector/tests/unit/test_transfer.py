"""Values that cross between processes."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from kvpool_connector.transfer import Kind, Orders, Probe, Reports, Sample, Spill, Tier, Transfer

SAMPLE = Sample(Tier.DISK, 4096, 0.25)


@pytest.mark.parametrize(
    "value",
    [
        Transfer(Kind.LOAD, 7, "r", (b"a", b"b", b"c"), (3, 4, 5), ((0, 9),), (2,), 0.5),
        Transfer(Kind.STORE, 8, "r", (b"a",), (3,), compared=frozenset({0})),
        Orders((Spill(9, Tier.DISK, (b"a",), (1,), (2,)),), (Probe(Tier.REMOTE, b"a"),)),
        Reports({1: {0}}, {1: {0}}, {2: {1}}, {3: [{1}, set()]}, [SAMPLE], Counter({"load ok": 2}), "why"),
    ],
)
def test_a_value_survives_the_crossing(value: object) -> None:
    """vLLM pickles it."""
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301


def test_reports_of_two_ranks_are_merged() -> None:
    """Failures and differences are united, ended spills are counted by rank, samples and counts are added."""
    one = Reports({1: {0}, 2: {5}}, {2: {5}}, {6: {0}}, {3: [{1}]}, [SAMPLE], Counter({"load ok": 2}))
    two = Reports(
        {1: {2}}, {1: {2}}, {6: {1}, 7: {0}}, {3: [set()], 4: [{0}]}, [SAMPLE], Counter({"load ok": 1, "x": 1}), "why"
    )
    assert one.merge(two) == Reports(
        {1: {0, 2}, 2: {5}},
        {1: {2}, 2: {5}},
        {6: {0, 1}, 7: {0}},
        {3: [{1}, set()], 4: [{0}]},
        [SAMPLE, SAMPLE],
        Counter({"load ok": 3, "x": 1}),
        "why",
    )
    assert two.merge(one).broken == "why"


def test_merging_touches_neither_report() -> None:
    """vLLM merges the same object more than once."""
    one, two = Reports({1: {0}}, {}, {}, {3: [{1}]}), Reports({1: {2}}, {}, {}, {3: [set()]})
    merged = one.merge(two)
    merged.failed[1].add(9)
    merged.spilled[3].append({9})
    merged.samples.append(SAMPLE)
    merged.counts["x"] += 1
    assert (one, two) == (Reports({1: {0}}, {}, {}, {3: [{1}]}), Reports({1: {2}}, {}, {}, {3: [set()]}))


@pytest.mark.parametrize(
    "news",
    [
        Reports(failed={1: {0}}),
        Reports(differed={1: {0}}),
        Reports(spilled={1: [set()]}),  # all is well is news, too: the row is free
        Reports(samples=[SAMPLE]),
        Reports(counts=Counter(x=1)),
        Reports(broken="why"),
    ],
)
def test_news_is_true(news: Reports) -> None:
    """A step without news sends nothing."""
    assert news
    assert not Reports()


def test_orders_without_work_are_false() -> None:
    """A step without orders sends nothing."""
    assert not Orders()
    assert Orders(probes=(Probe(Tier.DISK, b"a", 1),))
    assert Orders(spills=(Spill(1, Tier.REMOTE, (b"a",), (1,)),))
