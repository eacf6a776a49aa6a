"""Pods of LLMInferenceServices: one node, several nodes, prefill; and that the words arrive where a shell hands them on."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvpool_operator.api import ConflictPolicy
from kvpool_operator.injection import names
from kvpool_operator.injection.names import Parent
from kvpool_operator.injection.pod import inject
from testkit.patience import PATIENCE_S

from .kserve_llm import LEADER, PREFILL, SCHEDULER, SINGLE, WORKER
from .pods import LMCACHE, NIXL, facts

FLAGS = {
    "--kv-transfer-config.kv_connector": "KVPoolConnector",
    "--kv-transfer-config.kv_connector_module_path": "kvpool_connector.vllm",
    "--kv-transfer-config.kv_role": "kv_both",
    "--kv-transfer-config.kv_load_failure_policy": "recompute",
    "--prefix-caching-hash-algo": "sha256_cbor",
}


def main(body: dict[str, Any]) -> dict[str, Any]:
    (only,) = body["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def with_arguments(body: dict[str, Any], *words: str) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    main(changed)["args"] = [*main(changed).get("args", []), *words]
    return changed


@pytest.mark.parametrize("body", [SINGLE, PREFILL, LEADER, WORKER], ids=["single", "prefill", "leader", "worker"])
def test_its_pods_are_found_and_changed(body: dict[str, Any]) -> None:
    assert names.parent(body) == Parent("LLMInferenceService", "llama")
    made = inject(body, facts()).body
    assert made["metadata"]["annotations"]["kvpool.dev/injected"] == "team/demo@abc"
    assert made["metadata"]["annotations"]["kvpool.dev/pool"] == "team/demo", (
        "found again without asking KServe's object"
    )
    assert {"KVPOOL_CONFIG_FILE", "PYTHONHASHSEED"} <= {one["name"] for one in main(made)["env"]}
    assert main(made)["command"] == main(body)["command"]
    assert made["spec"]["initContainers"] == body["spec"]["initContainers"]
    assert inject(made, facts()).body == made


def test_the_scheduler_runs_no_engine() -> None:
    assert names.parent(SCHEDULER) is None


@pytest.mark.parametrize("body", [SINGLE, PREFILL], ids=["single", "prefill"])
def test_on_one_node_the_flags_are_arguments(body: dict[str, Any]) -> None:
    arguments = main(inject(body, facts()).body)["args"]
    assert json.loads(arguments[arguments.index("--kv-transfer-config") + 1])["kv_connector"] == "KVPoolConnector"


def test_on_one_node_the_transport_between_prefill_and_decode_is_combined_with() -> None:
    body = with_arguments(SINGLE, "--kv-transfer-config", json.dumps(NIXL))
    arguments = main(inject(body, facts(conflict_policy=ConflictPolicy.MULTI)).body)["args"]
    inner = json.loads(arguments[arguments.index("--kv-transfer-config") + 1])["kv_connector_extra_config"][
        "connectors"
    ]
    assert [one["kv_connector"] for one in inner] == ["KVPoolConnector", "NixlConnector"]


def run(body: dict[str, Any], folder: Path) -> list[str]:
    """What vLLM is started with, by a real shell."""
    vllm = folder / "vllm"
    vllm.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    vllm.chmod(0o755)
    container = main(body)
    # The kubelet fills in $(NAME) before the container starts.
    line = [word.replace("$(LWS_LEADER_ADDRESS)", "leader") for word in (*container["command"], *container["args"])]
    variables = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    environment = {**variables, "PATH": f"{folder}:/usr/bin:/bin", "LWS_WORKER_INDEX": "1"}
    return subprocess.run(
        line, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    ).stdout.split("\n")


@pytest.mark.parametrize("body", [LEADER, WORKER], ids=["leader", "worker"])
def test_on_several_nodes_the_flags_arrive_through_both_shells(body: dict[str, Any], tmp_path: Path) -> None:
    before, after = run(body, tmp_path), run(inject(body, facts()).body, tmp_path)
    assert before[:2] == ["serve", "/mnt/models"]
    place = after.index(next(iter(FLAGS)))
    added = after[place : place + 2 * len(FLAGS)]
    assert dict(zip(added[::2], added[1::2], strict=True)) == FLAGS
    assert [*after[:place], *after[place + len(added) :]] == before, "nothing else of the command line is changed"
    assert ("--headless" in after) == (body is WORKER)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--kv-transfer-config", json.dumps(LMCACHE)), "ConnectorPresent"),
        (("--kv-transfer-config.kv_connector", "NixlConnector"), "ConnectorPresent"),
        (("--no-enable-prefix-caching",), "PrefixCachingOff"),
        (("--prefix-caching-hash-algo", "sha256"), "HashAlgorithm"),
        (("--kv-offloading-size", "4"), "ConnectorPresent"),
    ],
)
def test_on_several_nodes_the_services_own_arguments_are_looked_at(words: tuple[str, ...], why: str) -> None:
    """They come behind the script, as its $@."""
    outcome = inject(with_arguments(LEADER, *words), facts())
    assert outcome.body["metadata"]["annotations"]["kvpool.dev/skip-reason"].startswith(f"{why}: ")
    assert outcome.body["spec"] == with_arguments(LEADER, *words)["spec"]
