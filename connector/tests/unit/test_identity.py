"""What a stored block depends on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.identity import canonical, digest, document_name

DOCUMENT: dict[str, Any] = {
    "format": 1, "vllm": "0.32.0", "tenant": "", "weights": "sha256:00", "dtype": "torch.bfloat16", "kv_dtype": "auto",
    "groups": [[16, "layer.0", "layer.1"]], "parallel": [2, 2, 1, 1, 1],
}  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=6), st.randoms())
def test_order_does_not_matter(document: dict[str, Any], source: Any) -> None:
    """Two processes need not gather facts in the same order."""
    shuffled = list(document.items())
    source.shuffle(shuffled)
    assert canonical(dict(shuffled)) == canonical(document)
    assert json.loads(canonical(document)) == document


def test_the_canonical_form_does_not_change() -> None:
    """It would turn every stored block into a miss."""
    assert canonical({"b": "é", "a": [1, None, True]}) == b'{"a":[1,null,true],"b":"\\u00e9"}'
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad808"
    assert document_name("ab") == b"kvpool:identity:ab"


@pytest.mark.parametrize("field", sorted(DOCUMENT))
def test_each_field_counts(field: str) -> None:
    """A changed value, a removed field and another name of the field."""
    without = {name: value for name, value in DOCUMENT.items() if name != field}
    others = [without | {field: "other"}, without, without | {f"{field}_": DOCUMENT[field]}]
    assert len({digest(document) for document in [DOCUMENT, *others]}) == 4


def test_nested_values_count() -> None:
    """The layers of a group, for one."""
    assert digest(DOCUMENT | {"groups": [[16, "layer.1", "layer.0"]]}) != digest(DOCUMENT)
    assert digest(DOCUMENT | {"groups": [[16, "layer.0"], [16, "layer.1"]]}) != digest(DOCUMENT)


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, float("nan")])
def test_a_fact_must_be_plain(value: object) -> None:
    """Text such as "<object at 0x…>" would differ from process to process."""
    with pytest.raises((TypeError, ValueError)):
        canonical({"fact": value})
