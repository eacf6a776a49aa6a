"""What Kubernetes demands of a CRD's schema ("structural"), and what this project demands on top, as checks.

The API server finds some of these only at installation, others never: an unbounded list makes a CEL rule too expensive,
a list without a type loses entries when two writers apply it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_FORBIDDEN = (
    "$ref", "$defs", "definitions", "patternProperties", "dependencies", "discriminator", "readOnly", "writeOnly",
    "deprecated", "xml", "const", "prefixItems", "anyOf", "oneOf", "allOf", "not", "examples",
)  # fmt: skip
_TYPES = {"object", "array", "string", "integer", "number", "boolean"}
_INT_OR_STRING = "x-kubernetes-int-or-string"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"


def structural_faults(schema: Mapping[str, Any], path: str = "$") -> list[str]:
    """Every fault of a schema, each with the path of the node; empty: the schema may be published."""
    return [fault for node_path, node in _nodes(schema, path) for fault in _node_faults(node_path, node)]


def _nodes(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    if isinstance(schema.get("items"), Mapping):
        yield from _nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from _nodes(schema["additionalProperties"], f"{path}{{}}")


def _node_faults(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    for key in _FORBIDDEN:
        if key in node:
            yield f"{path}: {key} is not allowed"
    yield from _type_faults(path, node)
    if "additionalProperties" in node and "properties" in node:
        yield f"{path}: additionalProperties together with properties"
    if isinstance(node.get("additionalProperties"), bool):
        yield f"{path}: additionalProperties must be a schema"
    for bound in ("exclusiveMinimum", "exclusiveMaximum"):
        if bound in node and not isinstance(node[bound], bool):
            yield f"{path}: {bound} must be a boolean in OpenAPI 3.0"
    if node.get("uniqueItems"):
        yield f"{path}: uniqueItems is not allowed"
    yield from _size_faults(path, node)
    yield from _default_faults(path, node)
    if path != "$" and not path.endswith(("[]", "{}")) and not node.get("description"):
        yield f"{path}: no description, and 'kubectl explain' would say nothing"


def _type_faults(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    kind = node.get("type")
    if node.get(_INT_OR_STRING):
        if kind is not None:
            yield f"{path}: {_INT_OR_STRING} together with a type"
    elif not isinstance(kind, str) or kind not in _TYPES:
        yield f"{path}: type is {kind!r}"
    if kind == "object" and not ({"properties", "additionalProperties", _PRESERVE} & node.keys()):
        yield f"{path}: an object without properties would be pruned to nothing"


def _size_faults(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    if node.get("type") == "array":
        if "items" not in node:
            yield f"{path}: a list needs items"
        if "maxItems" not in node:
            yield f"{path}: a list needs maxItems"
        kind = node.get("x-kubernetes-list-type")
        if kind not in ("atomic", "set", "map"):
            yield f"{path}: a list needs x-kubernetes-list-type"
        if kind == "map":
            yield from _map_key_faults(path, node)
    if isinstance(node.get("additionalProperties"), Mapping) and "maxProperties" not in node:
        yield f"{path}: a map needs maxProperties"
    if node.get("x-kubernetes-validations") and node.get("type") == "string" and "maxLength" not in node:
        yield f"{path}: a string with rules needs maxLength"


def _map_key_faults(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    keys = node.get("x-kubernetes-list-map-keys", [])
    item = node.get("items", {})
    if not keys:
        yield f"{path}: a list of type map needs x-kubernetes-list-map-keys"
    for key in keys:
        if key not in item.get("required", []) and "default" not in item.get("properties", {}).get(key, {}):
            yield f"{path}: the key {key} must be required or have a default"


def _default_faults(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    if "default" not in node:
        return
    default = node["default"]
    if default is None:
        yield f"{path}: a default of null"
    elif "enum" in node and default not in node["enum"]:
        yield f"{path}: the default {default!r} is not in the enum"
