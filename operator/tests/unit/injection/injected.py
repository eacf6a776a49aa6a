"""Pods after the injection, and what tests look at in them."""

from __future__ import annotations

import copy
from typing import Any

from kvpool_operator.injection import target as target_module
from kvpool_operator.injection.pod import inject

from .pods import facts


def changed(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    before = copy.deepcopy(body)
    outcome = inject(body, facts(**changes))
    assert body == before, "the argument was changed"
    assert "kvpool.dev/injected" in outcome.body["metadata"]["annotations"], outcome.warnings
    return outcome.body


def reason(body: dict[str, Any], **changes: Any) -> str:
    outcome = inject(body, facts(**changes))
    annotations = outcome.body["metadata"]["annotations"]
    assert "kvpool.dev/injected" not in annotations
    assert outcome.body["spec"] == body["spec"]
    assert outcome.warnings
    return str(annotations["kvpool.dev/skip-reason"])


def target(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["spec"]["containers"][target_module.find(body)]
    return found


def environment(one: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in one.get("env", ())}
