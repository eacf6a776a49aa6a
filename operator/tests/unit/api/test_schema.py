"""The CRD: each rule of a structural schema is checked, and the published files are what the models say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, create_model

from kvpool_operator.api import generate
from kvpool_operator.api.schema import SchemaError, crd, openapi
from kvpool_operator.api.structural import structural_faults
from kvpool_operator.api.types import ApiModel, ResourceQuantity, list_field

REPOSITORY = Path(__file__).parents[4]
GOOD: dict[str, Any] = {"type": "string", "description": "d"}


def faults(field: dict[str, Any]) -> str:
    return "; ".join(structural_faults({"type": "object", "properties": {"f": {"description": "d", **field}}}))


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ({"$ref": "#/x", "type": "string"}, "$ref is not allowed"),
        ({"anyOf": [{"type": "string"}], "type": "string"}, "anyOf is not allowed"),
        ({"const": 1, "type": "integer"}, "const is not allowed"),
        ({"type": "string", "readOnly": True}, "readOnly is not allowed"),
        ({"type": ["string", "null"]}, "type is ['string', 'null']"),
        ({"type": "null"}, "type is 'null'"),
        ({}, "type is None"),
        ({"type": "object"}, "pruned to nothing"),
        ({"type": "object", "properties": {}, "additionalProperties": GOOD}, "additionalProperties together"),
        ({"type": "object", "additionalProperties": False}, "additionalProperties must be a schema"),
        ({"type": "object", "additionalProperties": GOOD}, "a map needs maxProperties"),
        ({"type": "integer", "exclusiveMinimum": 0}, "exclusiveMinimum must be a boolean"),
        ({"type": "array", "items": GOOD, "x-kubernetes-list-type": "atomic"}, "a list needs maxItems"),
        ({"type": "array", "items": GOOD, "maxItems": 1}, "x-kubernetes-list-type"),
        ({"type": "array", "maxItems": 1, "x-kubernetes-list-type": "atomic"}, "a list needs items"),
        (
            {"type": "array", "items": GOOD, "maxItems": 1, "x-kubernetes-list-type": "set", "uniqueItems": True},
            "uniqueItems",
        ),
        (
            {
                "type": "array",
                "items": {"type": "object", "properties": {"name": GOOD}},
                "maxItems": 1,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
            "the key name must be required or have a default",
        ),
        ({"type": "string", "x-kubernetes-int-or-string": True}, "together with a type"),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "true"}]}, "needs maxLength"),
        ({"type": "string", "default": None}, "a default of null"),
        ({"type": "string", "enum": ["a"], "default": "b"}, "not in the enum"),
        ({"type": "string", "description": ""}, "no description"),
    ],
)
def test_each_structural_rule_finds_its_fault(field: dict[str, Any], fault: str) -> None:
    assert fault in faults(field)


def test_a_plain_field_has_no_fault() -> None:
    assert faults(GOOD) == ""


class Inner(ApiModel):
    """Inside."""

    size: int = Field(3, description="A stable default.")


def schema_of(**fields: Any) -> dict[str, Any]:
    properties: dict[str, Any] = openapi(create_model("Sample", __base__=ApiModel, **fields))["properties"]
    return properties


def test_optional_is_absent_and_not_null() -> None:
    assert schema_of(f=(int | None, Field(None, description="d"))) == {"f": {"type": "integer", "description": "d"}}


def test_a_nested_model_is_inlined_and_its_field_keeps_its_own_description() -> None:
    inlined = schema_of(f=(Inner | None, Field(None, description="mine")))["f"]
    assert inlined["description"] == "mine"
    assert inlined["properties"]["size"] == {"type": "integer", "default": 3, "description": "A stable default."}


def test_int_or_string() -> None:
    field = schema_of(f=(ResourceQuantity, Field(description="d")))["f"]
    assert field["x-kubernetes-int-or-string"] is True
    assert "type" not in field


def test_names_are_camel_case() -> None:
    assert list(schema_of(pod_template=(int, Field(description="d")))) == ["podTemplate"]


def test_a_list_without_a_type_is_refused_at_generation() -> None:
    with pytest.raises(SchemaError, match="x-kubernetes-list-type"):
        schema_of(f=(tuple[str, ...], Field((), description="d", max_length=3)))


def test_a_union_is_refused_at_generation() -> None:
    with pytest.raises(SchemaError, match="union"):
        schema_of(f=(int | list[int], Field(1, description="d")))


TYPES = st.sampled_from(
    [
        (str, Field(description="d")),
        (int | None, Field(None, description="d", ge=0)),
        (bool, Field(False, description="d")),
        (Inner, Field(Inner(), description="d")),
        (Inner | None, Field(None, description="d")),
        (ResourceQuantity | None, Field(None, description="d")),
        (dict[str, ResourceQuantity], Field({}, description="d", max_length=4)),
        (tuple[str, ...], list_field(kind="atomic", maximum=4, description="d")),
        (tuple[Inner, ...], list_field(kind="map", keys=("size",), maximum=4, description="d")),
    ]
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(_[a-z]{1,8})?", fullmatch=True), TYPES, min_size=1, max_size=6))
def test_every_model_of_these_types_has_a_structural_schema(fields: dict[str, Any]) -> None:
    model = create_model("Sample", __base__=ApiModel, **{f"f{name}": field for name, field in fields.items()})
    assert structural_faults(openapi(model)) == []


def test_the_published_files_are_what_the_models_say() -> None:
    assert generate.main(["--check"]) == 0


def test_a_stale_file_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--root", str(tmp_path)]) == 0
    path = next((tmp_path / "crds").iterdir())
    path.write_text(path.read_text().replace("shortNames", "shortnames"))
    assert generate.main(["--root", str(tmp_path), "--check"]) == 1
    assert f"stale: {path}" in capsys.readouterr().err


def test_the_crd_is_small_enough_for_client_side_apply() -> None:
    assert len(yaml.safe_dump(crd())) < 100_000


def test_kubectl_get_shows_what_matters() -> None:
    (version,) = crd()["spec"]["versions"]
    shown = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert shown == ["Ready", "Reason", "Store", "Engines", "Age"]
