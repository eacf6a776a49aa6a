"""Pods that are left as they are: the reason names the fix."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from kvpool_operator.injection.patch import diff
from kvpool_operator.injection.pod import inject

from .injected import changed, reason
from .patches import applied
from .pods import SIDECAR, container, facts, pod, serve

NAMELESS = {"name": "second", "image": "registry.example/b:1"}
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "NoVLLM": (pod(container(command=["nginx"]), NAMELESS), "kvpool.dev/container"),
    "NoVLLM, several GPUs": (
        pod(*({**one, "resources": {"claims": [{"name": "gpu"}]}} for one in (container(), NAMELESS))),
        "ask for a GPU",
    ),
    "NoVLLM, name": (pod(serve(), annotations={"kvpool.dev/container": "x"}), "containers are main"),
    "NoVLLM, transformer": (
        pod(
            container(name="kserve-container"),
            labels={"serving.kserve.io/inferenceservice": "llm", "component": "transformer"},
        ),
        "KServe runs no engine in this Pod",
    ),
    "SeveralVLLM": (pod(serve(), {**serve(), "name": "second"}), "main, second"),
    "OwnConfiguration": (pod(serve(env=[{"name": "KVPOOL_CONFIG_FILE", "value": "/x"}])), "KVPOOL_CONFIG_FILE"),
    "NameTaken": (pod(serve(volumeMounts=[{"name": "x", "mountPath": "/etc/kvpool/"}])), "/etc/kvpool"),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_reason_names_the_fix(case: str) -> None:
    body, fix = REASONS[case]
    text = reason(body)
    assert text.startswith(case.partition(",")[0] + ": ")
    assert fix in text


def test_a_volume_of_ours_that_is_somebody_elses() -> None:
    body = pod(serve())
    body["spec"]["volumes"] = [{"name": "kvpool-config", "emptyDir": {}}]
    assert reason(body).startswith("NameTaken: the Pod has a volume kvpool-config of its own")


def test_a_reason_goes_when_the_pod_is_injected_after_all() -> None:
    annotations = {"kvpool.dev/pool": "demo", "kvpool.dev/skip-reason": "PoolMissing: x"}
    assert "kvpool.dev/skip-reason" not in changed(pod(serve(), annotations=annotations))["metadata"]["annotations"]


def test_the_label_is_one_whatever_the_pool_is_called() -> None:
    for name in ("-a", "a/b", "x" * 64, "A b", ""):
        labels = changed(pod(serve()), key=("team", name))["metadata"]["labels"]
        assert re.fullmatch("[0-9a-f]{40}", labels["kvpool.dev/consumer"])


def test_a_pod_that_is_left_as_it_is_enters_no_network_policy() -> None:
    """Its label is there, so that the watch sees it. It is no pool's, since names have no capital."""
    label = skipped_label(pod(container(command=["nginx"]), NAMELESS))
    assert label == "No-Pool"
    assert label != label.lower()
    carried = pod(container(command=["nginx"]), NAMELESS, labels={"kvpool.dev/consumer": "team.demo"})
    assert skipped_label(carried) == "No-Pool"


def skipped_label(body: dict[str, Any]) -> str:
    found = inject(body, facts()).body["metadata"]
    assert "kvpool.dev/skip-reason" in found["annotations"]
    return str(found["labels"]["kvpool.dev/consumer"])


def test_a_pod_of_900_kb() -> None:
    body = pod(serve(env=[{"name": f"V{number}", "value": "x" * 1000} for number in range(900)]), SIDECAR)
    assert len(json.dumps(body)) > 900_000
    tries = []
    for _ in range(5):  # on a core, and the best: how busy the machine is doesn't count
        began = time.thread_time()
        after = changed(body)
        patch = diff(body, after)
        tries.append(time.thread_time() - began)
    assert len(json.dumps(patch)) < 5000
    assert applied(body, patch) == after
    assert min(tries) < 0.05, tries
