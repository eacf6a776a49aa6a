"""The CustomResourceDefinition, made from the pydantic models.

pydantic writes JSON Schema 2020 with references; Kubernetes wants an inlined OpenAPI 3.0 subset. This module translates
what kvpool's models use and refuses the rest, so that a model can't silently lose a constraint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from kvpool_operator.api.spec import NAME_PATTERN, POOL_NAME_MAX, KVCachePoolSpec
from kvpool_operator.api.status import KVCachePoolStatus
from kvpool_operator.api.structural import structural_faults
from kvpool_operator.api.types import GROUP, KIND, PLURAL, VERSION

_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_DROPPED = {"title", "$defs"}


class SchemaError(ValueError):
    """A model cannot be expressed in a CRD."""


def openapi(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a model.

    Raises:
        SchemaError: with every fault and its path.
    """
    document = model.model_json_schema(by_alias=True)
    schema = _translate(document, document.get("$defs", {}), ())
    faults = structural_faults(schema)
    if faults:
        raise SchemaError(f"{model.__name__}: " + "; ".join(faults))
    return schema


def _translate(node: Mapping[str, Any], definitions: Mapping[str, Any], seen: tuple[str, ...]) -> dict[str, Any]:
    merged, seen = _resolve(node, definitions, seen)
    out: dict[str, Any] = {}
    for key, value in merged.items():
        if key in _DROPPED or (key == "default" and not _is_api_default(value)):
            continue
        if key == "properties":
            out[key] = {name: _translate(child, definitions, seen) for name, child in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
            out[key] = _translate(value, definitions, seen)
        elif key == "description":
            out[key] = " ".join(str(value).split())
        else:
            out[key] = value
    if out.get(_PRESERVE):
        out.pop("additionalProperties", None)
    return out


def _is_api_default(value: Any) -> bool:
    """None, an empty list and an empty section say 'nothing set': written into stored objects they would be noise."""
    return value is not None and value != [] and not isinstance(value, Mapping)


def _resolve(
    node: Mapping[str, Any], definitions: Mapping[str, Any], seen: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The node with its reference inlined and its unions reduced; what stands beside a reference wins."""
    own = dict(node)
    if "$ref" in own:
        name = own.pop("$ref").removeprefix("#/$defs/")
        if name in seen:
            raise SchemaError(f"{name} contains itself: a CRD cannot express that")
        base, seen = _resolve(definitions[name], definitions, (*seen, name))
        return {**base, **own}, seen
    if "anyOf" in own:
        variants = [variant for variant in own.pop("anyOf") if variant.get("type") != "null"]
        if len(variants) == 1:
            base, seen = _resolve(variants[0], definitions, seen)
            return {**base, **own}, seen
        if sorted(variant.get("type", "?") for variant in variants) == ["integer", "string"]:
            return {_INT_OR_STRING: True, **own}, seen
        raise SchemaError(f"a union of {variants} has no structural schema")
    if "const" in own:
        own["enum"] = [own.pop("const")]
    return own, seen


def _column(name: str, path: str, **further: Any) -> dict[str, Any]:
    return {"name": name, "type": "string", "jsonPath": path, **further}


def crd() -> dict[str, Any]:
    """The whole CustomResourceDefinition, as the API server takes it."""
    ready = '.status.conditions[?(@.type=="Ready")]'
    columns = [
        _column("Ready", f"{ready}.status"),
        _column("Reason", f"{ready}.reason"),
        _column("Store", ".status.store"),
        _column("Engines", ".status.enginesReady"),
        _column("Model", ".spec.model.name", priority=1),
        _column("Message", f"{ready}.message", priority=1),
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
    names = {"kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": KIND.lower(), "shortNames": ["kvp"]}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": _root()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {**names, "categories": ["kvpool"]},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def _root() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "A KV cache that vLLM servers share: its store, its configuration and the servers themselves.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": openapi(KVCachePoolSpec),
            "status": openapi(KVCachePoolStatus),
        },
        "x-kubernetes-validations": [
            {
                "rule": f"size(self.metadata.name) <= {POOL_NAME_MAX} && self.metadata.name.matches('{NAME_PATTERN}')",
                "message": f"metadata.name must be at most {POOL_NAME_MAX} lower-case letters, digits and dashes, "
                "beginning with a letter: Services are named after it",
            }
        ],
    }
