"""What a stored block depends on, and the fingerprint of weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.identity import canonical, digest, document_name, weights_fingerprint

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


# ---- weights -------------------------------------------------------------------------------------------------


def model(folder: Path, **files: bytes) -> Path:
    """A folder with weight files."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def test_path_time_and_other_files_do_not_matter(tmp_path: Path) -> None:
    """The same weights, downloaded twice."""
    one = model(tmp_path / "one", a__safetensors=b"abc", config__json=b"{}")
    two = model(tmp_path / "two", a__safetensors=b"abc", README__md=b"text")
    os.utime(two / "a.safetensors", (1, 1))
    assert weights_fingerprint(one) == weights_fingerprint(two)
    assert weights_fingerprint(one).startswith("sha256:")


@pytest.mark.parametrize(
    "files",
    [
        {"a__safetensors": b"abd"},
        {"a__safetensors": b"abcd"},
        {"a__safetensors": b""},
        {"b__safetensors": b"abc"},
        {"a__bin": b"abc"},
        {"a__safetensors": b"abc", "b__safetensors": b""},
        {"a__safetensors": b"ab", "b__safetensors": b"c"},
    ],
)
def test_content_size_and_names_matter(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Each difference alone."""
    assert weights_fingerprint(model(tmp_path / "x", a__safetensors=b"abc")) != weights_fingerprint(
        model(tmp_path / "y", **files)
    )


@pytest.mark.parametrize("position", [0, (1 << 20) - 1, (3 << 20) - 1])
def test_a_large_file_is_seen_at_both_ends(tmp_path: Path, position: int) -> None:
    """Its first MiB, and samples up to its last byte."""
    content = bytearray(3 << 20)
    before = weights_fingerprint(model(tmp_path / "before", a__gguf=bytes(content)))
    content[position] ^= 1
    assert weights_fingerprint(model(tmp_path / "after", a__gguf=bytes(content))) != before


def test_another_training_is_seen(tmp_path: Path) -> None:
    """Every value behind the header differs a little, as after fine-tuning."""
    head = bytes(1 << 20)
    first = model(tmp_path / "first", a__safetensors=head + bytes(2 << 20))
    second = model(tmp_path / "second", a__safetensors=head + b"\1" * (2 << 20))
    assert weights_fingerprint(first) != weights_fingerprint(second)


def test_no_weights(tmp_path: Path) -> None:
    """A folder with a configuration alone must not have an identity."""
    with pytest.raises(FileNotFoundError, match=r"no weight files .*safetensors"):
        weights_fingerprint(model(tmp_path / "empty", config__json=b"{}"))
    with pytest.raises(FileNotFoundError):
        weights_fingerprint(tmp_path / "missing")
