"""Values that cross between processes."""

from __future__ import annotations

import pickle

from kvpool_connector.transfer import Kind, Reports, Transfer


def test_a_transfer_survives_the_crossing() -> None:
    """vLLM pickles it."""
    transfer = Transfer(Kind.LOAD, 7, "r", (b"a",), (3,), (True,))
    assert pickle.loads(pickle.dumps(transfer)) == transfer  # noqa: S301


def test_reports_of_two_ranks_are_merged_without_touching_them() -> None:
    """Failures are united, ends of puts are counted by rank."""
    one = Reports({1: {0}, 2: {5}}, {3: [{1}]})
    two = Reports({1: {2}}, {3: [set()], 4: [{0}]})
    merged = one.merge(two)
    assert merged == Reports({1: {0, 2}, 2: {5}}, {3: [{1}, set()], 4: [{0}]})
    merged.failed[1].add(9)
    merged.puts[3].append({9})
    assert (one, two) == (Reports({1: {0}, 2: {5}}, {3: [{1}]}), Reports({1: {2}}, {3: [set()], 4: [{0}]}))
    assert pickle.loads(pickle.dumps(merged)) == merged  # noqa: S301


def test_empty_reports_are_false() -> None:
    """So that a step without news sends nothing. An ended put without failures is news."""
    assert not Reports()
    assert Reports(failed={1: {0}})
    assert Reports(puts={1: [set()]})
