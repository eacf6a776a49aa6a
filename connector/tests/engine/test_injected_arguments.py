"""What the operator's injection writes on a command line is read by vLLM's own parser, and means what it should.

The words here are those of ``operator/src/kvpool_operator/injection``; its unit tests state that it writes exactly these.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from typing import Any

import pytest
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

OURS = {
    "kv_connector": "KVPoolConnector",
    "kv_connector_module_path": "kvpool_connector.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
MULTI = {
    "kv_connector": "MultiConnector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
    "kv_connector_extra_config": {"connectors": [OURS, NIXL]},
}
DOTTED = [word for key, value in OURS.items() for word in (f"--kv-transfer-config.{key}", value)]
HASH = ["--prefix-caching-hash-algo", "sha256_cbor"]


def parsed(words: list[str]) -> argparse.Namespace:
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())  # type: ignore[no-untyped-call]
    found: argparse.Namespace = parser.parse_args(["--model", "m", *words])
    return found


def transfer(words: list[str]) -> KVTransferConfig:
    found = parsed(words).kv_transfer_config
    assert isinstance(found, KVTransferConfig)
    return found


def compact(config: dict[str, Any]) -> str:
    return json.dumps(config, separators=(",", ":"))


@pytest.mark.parametrize("words", [["--kv-transfer-config", compact(OURS)], DOTTED], ids=["JSON", "dotted"])
def test_ours(words: list[str]) -> None:
    config = transfer([*words, *HASH])
    assert {key: getattr(config, key) for key in OURS} == OURS
    assert parsed([*words, *HASH]).prefix_caching_hash_algo == "sha256_cbor"


def test_both_connectors() -> None:
    config = transfer(["--kv-transfer-config", compact(MULTI)])
    assert [KVTransferConfig(**one).kv_connector for one in config.kv_connector_extra_config["connectors"]] == [
        "KVPoolConnector",
        "NixlConnector",
    ]


def test_the_last_of_two_counts() -> None:
    """So a flag of the user's has to be taken out where ours takes its place."""
    both = ["--kv-transfer-config", compact(OURS), "--kv_transfer_config", compact(NIXL)]
    assert transfer(both).kv_connector == "NixlConnector"


def test_a_shell_that_reads_twice_keeps_the_dotted_form_and_spoils_json() -> None:
    """As KServe's LLMInferenceService does: ``eval`` of a line with the variable in it."""

    def through(arguments: str) -> list[str]:
        script = "eval \"printf '%s\\n' ${VLLM_ADDITIONAL_ARGS} $@\""
        done = subprocess.run(
            ["bash", "-c", script, "--"],
            env={"VLLM_ADDITIONAL_ARGS": arguments},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split("\n")[:-1]

    assert through(" ".join([*DOTTED, *HASH])) == [*DOTTED, *HASH]
    plain = shlex.join(["--kv-transfer-config", compact(OURS)]).replace("'", "")
    assert through(plain) != ["--kv-transfer-config", compact(OURS)]
