"""Texts in Pods that are long or deeply nested: each gives a reason, in time and without an exception."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from kvpool_operator.api import ConflictPolicy
from kvpool_operator.injection.outcome import MOST_TEXT

from .injected import changed, reason
from .pods import container, pod, serve

LONG = "x" * 1_200_000
SCRIPT = "vllm serve m ${VLLM_ADDITIONAL_ARGS}"


def shell(script: str = SCRIPT, **fields: Any) -> dict[str, Any]:
    return pod(container(command=["sh", "-c", script], **fields))


def nested(depth: int) -> str:
    """Return a configuration that is JSON, with one value that is that many mappings deep."""
    inner = '{"a":' * depth + "1" + "}" * depth
    return '{"kv_connector":"Other","kv_connector_extra_config":' + inner + "}"


TOO_LONG = {
    "script": (shell(f"{SCRIPT} '{LONG}'"), "the shell script of container main"),
    "script that is not vLLM's": (shell(LONG), "the shell script of container main"),
    "variable": (
        shell(env=[{"name": "VLLM_ADDITIONAL_ARGS", "value": f"'{LONG}'"}]),
        "the variable VLLM_ADDITIONAL_ARGS of container main",
    ),
    "flag": (pod(serve("--kv-transfer-config", f'{{"a":"{LONG}"}}')), "--kv-transfer-config"),
    "flag in one word": (pod(serve(f'--kv-transfer-config={{"a":"{LONG}"}}')), "--kv-transfer-config"),
    "dotted flag": (pod(serve("--kv-transfer-config" + ".a" * 40_000, "1")), "--kv-transfer-config"),
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_text_that_is_too_long_is_named_and_not_read(case: str) -> None:
    body, field = TOO_LONG[case]
    began = time.thread_time()
    said = reason(body, conflict_policy=ConflictPolicy.MULTI)
    assert time.thread_time() - began < 0.2
    assert said.startswith(f"TextTooLong: {field} has ")
    assert f"at most {MOST_TEXT} are read" in said


def test_the_longest_text_that_is_read_is_read_in_time() -> None:
    """The words of a shell are the slowest: one long word in quotes takes quadratic time."""
    word = "x" * (MOST_TEXT - len(SCRIPT) - 3)
    began = time.thread_time()
    changed(shell(f"{SCRIPT} '{word}'"))
    assert time.thread_time() - began < 1.0


UNREADABLE = {
    "unfinished": ["--kv-transfer-config", '{"a":' * 3000],
    "lists": ["--kv-transfer-config", "[" * 5000],
    "deep": ["--kv-transfer-config", nested(500)],
    "dotted": ["--kv-transfer-config.kv_connector", "Other", "--kv-transfer-config" + ".a" * 3000, "1"],
    "value of a dotted one": ["--kv-transfer-config.kv_connector", '{"a":' * 3000],
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_json_that_is_nested_too_deeply_is_unreadable(case: str) -> None:
    said = reason(pod(serve(*UNREADABLE[case])), conflict_policy=ConflictPolicy.MULTI)
    assert said.startswith("UnreadableConnector: --kv-transfer-config can't be read (nested too deeply)")


def test_json_that_is_nested_as_deeply_as_anybody_needs_is_kept() -> None:
    arguments = changed(pod(serve("--kv-transfer-config", nested(20))), conflict_policy=ConflictPolicy.MULTI)["spec"][
        "containers"
    ][0]["args"]
    (combined,) = [word for word in arguments if "MultiConnector" in word]
    assert json.loads(nested(20)) in json.loads(combined)["kv_connector_extra_config"]["connectors"]


def test_a_number_with_more_digits_than_python_reads() -> None:
    digits = "1" * (sys.get_int_max_str_digits() + 1)
    volumes = changed(pod(serve("--tensor-parallel-size", digits)))["spec"]["volumes"]
    assert "kvpool-shm" in [volume["name"] for volume in volumes]


@pytest.mark.parametrize(
    "body",
    [
        pod(serve("--prefix-caching-hash-algo", LONG)),
        pod(serve(), annotations={"kvpool.dev/pool": "demo", "kvpool.dev/container": "x" * 200_000}),
    ],
    ids=["a flag's value", "an annotation"],
)
def test_a_reason_never_holds_a_long_text_of_others(body: dict[str, Any]) -> None:
    """All annotations together may have 256 KiB, or the API server refuses the Pod."""
    assert len(reason(body)) <= 2048
