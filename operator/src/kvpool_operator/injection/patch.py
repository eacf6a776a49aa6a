"""The difference of two JSON documents as a JSON Patch (RFC 6902)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Operation = dict[str, Any]


def diff(before: Any, after: Any, path: str = "") -> list[Operation]:
    """Operations that make ``after`` of ``before``: small where fields change or lists grow at their end, and whole values
    where lists change otherwise."""
    return list(_diff(before, after, path))


def _diff(before: Any, after: Any, path: str) -> Iterator[Operation]:
    if before is after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _mappings(before, after, path)
    elif isinstance(before, list) and isinstance(after, list) and len(before) <= len(after):
        for place, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _diff(one, other, f"{path}/{place}")
        for other in after[len(before) :]:
            yield {"op": "add", "path": f"{path}/-", "value": other}
    elif before != after:
        yield {"op": "replace", "path": path, "value": after}


def _mappings(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> Iterator[Operation]:
    for key in before:
        if key not in after:
            yield {"op": "remove", "path": f"{path}/{_escaped(key)}"}
    for key, value in after.items():
        if key not in before:
            yield {"op": "add", "path": f"{path}/{_escaped(key)}", "value": value}
        else:
            yield from _diff(before[key], value, f"{path}/{_escaped(key)}")


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
