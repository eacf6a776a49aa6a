"""What is read from a KVCachePool, and what is refused on reading although a CRD let it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import InvalidSpec, parse_spec
from kvpool_operator.api.types import Size

TESTS = Path(__file__).parents[2]
REPOSITORY = TESTS.parents[1]
BAD = yaml.safe_load((TESTS / "bad_pools.yaml").read_text())


@pytest.mark.parametrize("case", BAD, ids=[case["id"] for case in BAD])
def test_a_bad_spec_is_refused_with_the_field_named(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_spec(case["spec"])
    # pydantic writes places as engines.0.port, the API server as engines[0].port; the last word is the same.
    assert case["names"].rsplit(".", 1)[-1] in str(refused.value)


def test_the_quickstart_is_complete_in_twenty_lines() -> None:
    text = (REPOSITORY / "examples" / "quickstart" / "kvcachepool.yaml").read_text()
    assert len(text.splitlines()) <= 20
    spec = parse_spec(yaml.safe_load(text)["spec"])
    assert spec.model is not None
    assert spec.model.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert spec.managed_store is not None
    assert spec.managed_store.type == "Redis"
    assert spec.tiers.cpu is not None
    assert [engine.replicas for engine in spec.engines] == [2]


def test_a_field_of_a_newer_version_is_dropped() -> None:
    spec = parse_spec({"backend": {"type": "Redis", "shards": 3}, "monitoring": {}})
    assert "shards" not in spec.model_dump()["backend"]


def test_a_message_names_the_field_and_shows_no_input() -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.engines\.0\.env\.0\.name") as refused:
        parse_spec(
            {
                "backend": {},
                "model": {"name": "m"},
                "engines": [{"env": [{"name": "", "value": "a-secret-value"}]}],
            }
        )
    assert "a-secret-value" not in str(refused.value)


@given(st.integers(min_value=64, max_value=10**6), st.sampled_from(["Mi", "M", "Gi", "G", "Ti"]))
def test_sizes_above_the_minimum_pass_unchanged(number: int, unit: str) -> None:
    text = f"{number}{unit}"
    size = Size("61M")
    assert size.check(text) == text
    assert parse_quantity(text) >= parse_quantity("61M")
