"""The base of every API model, and the types that Kubernetes has and Python has not.

An invariant is stated once, as a ``Rule``: the API server checks its CEL side at admission, pydantic its Python side when
the operator reads an object (an older CRD may have let it in). Tests run both sides over the same examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from kvpool_connector.config import parse_quantity

GROUP = "kvpool.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "KVCachePool"
PLURAL = "kvcachepools"

# The sizes that both halves accept: Kubernetes' grammar without signs and without fractions of a byte (m, u, n).
SIZE_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(k|[MGTPE]i?|Ki|[eE][+-]?[0-9]{1,2})?$"
# What a resource list may hold: the same, and thousandths (500m of a CPU).
RESOURCE_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|[MGTPE]i?|Ki|[eE][+-]?[0-9]{1,2})?$"


@dataclass(frozen=True)
class Rule:
    """One invariant of an object, for both sides.

    Attributes:
        cel: the rule for the API server; ``self`` is the object.
        message: names the field and the fix.
        holds: the same rule over the parsed model.
        field_path: where the API server reports it, relative to the object (".memory").
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field_path: str | None = None

    def to_schema(self) -> dict[str, str]:
        path = {"fieldPath": self.field_path} if self.field_path else {}
        return {"rule": self.cel, "message": self.message, **path}


class ApiModel(BaseModel):
    """A part of the resource. Unknown fields are dropped when read, so that an older operator can read a newer object."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.to_schema() for rule in cls.rules]
        return schema


@dataclass(frozen=True)
class Size:
    """Annotation of a field that holds bytes as a Kubernetes quantity, at least ``minimum``."""

    minimum: str

    @property
    def message(self) -> str:
        return f"must be a size of at least {self.minimum}, written like 8Gi or 500M"

    def check(self, text: str) -> str:
        try:
            enough = parse_quantity(text) >= parse_quantity(self.minimum)
        except ValueError as error:
            raise ValueError(f"{self.message} ({error})") from None
        if not enough:
            raise ValueError(f"{self.message}, not {text}")
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, core_schema.str_schema(max_length=32))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        pattern = SIZE_PATTERN.replace("\\", "\\\\")
        enough = f"quantity(self).compareTo(quantity('{self.minimum}')) >= 0"
        rule = {"rule": f"self.matches('{pattern}') && isQuantity(self) && {enough}", "message": self.message}
        return {**handler(core), "x-kubernetes-validations": [rule]}


def _resource_quantity(value: str | int) -> str | int:
    if isinstance(value, str) and re.fullmatch(RESOURCE_PATTERN, value) is None:
        raise ValueError(f"{value!r} is not a quantity such as 500m or 4Gi")
    return value


ResourceQuantity = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, Field(max_length=32)],
    AfterValidator(_resource_quantity),
    Field(json_schema_extra={"pattern": RESOURCE_PATTERN, "maxLength": 32, "minimum": 0}),
]
"""A CPU, memory or device count; an integer or a string in the CRD, as in Kubernetes' own resource lists."""


def list_field(*, kind: str, maximum: int, keys: tuple[str, ...] = (), description: str) -> Any:
    """A list; the API server needs to know how two writers' lists merge and how long it can get."""
    extra: dict[str, Any] = {"x-kubernetes-list-type": kind}
    if keys:
        extra["x-kubernetes-list-map-keys"] = list(keys)
    return Field(default=(), max_length=maximum, json_schema_extra=extra, description=description)


FREE_FORM: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}
"""Schema of an object that kvpool passes on without looking inside."""
