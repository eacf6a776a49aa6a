"""Applying a JSON Patch, by the library that other software uses."""

from __future__ import annotations

from typing import Any

import jsonpatch


def applied(body: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = jsonpatch.apply_patch(body, operations)
    return found
