"""Texts in Pods that are long or deeply nested: none is read further than to be searched for a word."""

from __future__ import annotations

import time

import pytest

from .injected import changed, reason
from .pods import SIDECAR, container, pod, serve

LONG = "x" * 1_200_000
CASES = {
    "script": container(command=["sh", "-c", f"vllm serve m '{LONG}'"]),
    "unfinished": container(command=["sh", "-c", "vllm serve " + "$(" * 200_000]),
    "variable": serve(env=[{"name": "VLLM_ADDITIONAL_ARGS", "value": f"'{LONG}'"}]),
    "connector": serve("--kv-transfer-config", '{"a":' * 200_000),
    "image": container(image=LONG, command=["vllm"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_long_text_costs_no_time_and_stays_as_it_is(case: str) -> None:
    body = pod(CASES[case], SIDECAR)
    began = time.thread_time()
    made = changed(body)["spec"]["containers"][0]
    assert time.thread_time() - began < 0.2
    assert (made.get("command"), made.get("args")) == (CASES[case].get("command"), CASES[case].get("args"))


def test_a_reason_never_holds_a_long_text_of_others() -> None:
    """All annotations together may have 256 KiB, or the API server refuses the Pod."""
    annotations = {"kvpool.dev/pool": "demo", "kvpool.dev/container": "x" * 200_000}
    assert len(reason(pod(serve(), annotations=annotations))) <= 2048


def test_a_warning_never_holds_a_long_text_of_others() -> None:
    made = changed(pod(serve(env=[{"name": "PYTHONHASHSEED", "value": LONG}])))
    assert len(made["metadata"]["annotations"]["kvpool.dev/warning"]) <= 2048
