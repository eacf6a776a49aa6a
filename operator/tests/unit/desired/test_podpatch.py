"""Merging Pod templates."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvpool_operator.desired.podpatch import merge, merge_templates

JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.sampled_from(["a", "env", "containers", "spec"]), JSON, max_size=4)


def test_named_entries_merge_in_place_and_new_ones_come_last() -> None:
    base = {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}
    patch = {"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}
    assert merge(base, patch) == {
        "containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}]
    }


def test_null_removes() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}) == {"a": {"c": 2}}


def test_other_lists_are_replaced() -> None:
    assert merge({"command": ["a", "b"]}, {"command": ["c"]}) == {"command": ["c"]}


def test_a_variable_has_one_source() -> None:
    base = {"env": [{"name": "A", "value": "1"}]}
    assert merge(base, {"env": [{"name": "A", "valueFrom": {"x": 1}}]}) == {
        "env": [{"name": "A", "valueFrom": {"x": 1}}]
    }


def test_the_selector_survives() -> None:
    merged = merge_templates({"metadata": {"labels": {"k": "v"}}}, {"metadata": None}, selector={"k": "v"})
    assert merged["metadata"]["labels"] == {"k": "v"}


@given(OBJECT, OBJECT)
def test_merging_changes_neither_side_and_twice_is_once(base: dict[str, Any], patch: dict[str, Any]) -> None:
    import copy

    before = copy.deepcopy((base, patch))
    once = merge(base, patch)
    assert (base, patch) == before
    without_anonymous = {key: value for key, value in patch.items() if not isinstance(value, list)}
    once = merge(base, without_anonymous)
    assert merge(once, without_anonymous) == once
