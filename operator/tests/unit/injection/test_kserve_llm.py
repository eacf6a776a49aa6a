"""Pods of LLMInferenceServices: one node, several nodes, prefill, and what runs beside the engines."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.injection import names
from kvpool_operator.injection.names import Parent
from kvpool_operator.injection.pod import inject

from .kserve_llm import LEADER, PREFILL, SCHEDULER, SINGLE, WORKER
from .pods import facts


def main(body: dict[str, Any]) -> dict[str, Any]:
    (only,) = body["spec"]["containers"]
    found: dict[str, Any] = only
    return found


@pytest.mark.parametrize("body", [SINGLE, PREFILL, LEADER, WORKER], ids=["single", "prefill", "leader", "worker"])
def test_its_pods_are_found_and_changed(body: dict[str, Any]) -> None:
    assert names.parent(body) == Parent("LLMInferenceService", "llama")
    made = inject(body, facts()).body
    assert made["metadata"]["annotations"]["kvpool.dev/injected"] == "team/demo@abc"
    assert made["metadata"]["annotations"]["kvpool.dev/pool"] == "team/demo", (
        "found again without asking KServe's object"
    )
    assert {"KVPOOL_CONFIG_FILE", "PYTHONHASHSEED"} <= {one["name"] for one in main(made)["env"]}
    assert (main(made)["command"], main(made).get("args")) == (main(body)["command"], main(body).get("args"))
    assert made["spec"]["initContainers"][0] == body["spec"]["initContainers"][0]
    assert inject(made, facts()).body == made


def test_the_scheduler_runs_no_engine() -> None:
    """Neither by its service's annotation nor by one that KServe copied to it."""
    assert names.parent(SCHEDULER) is None
    made = inject(SCHEDULER, facts()).body
    assert made["spec"] == SCHEDULER["spec"]
    assert made["metadata"]["annotations"]["kvpool.dev/skip-reason"].startswith("NoVLLM: KServe runs no engine")
