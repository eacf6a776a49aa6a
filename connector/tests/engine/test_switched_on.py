"""Real servers that nobody told of kvpool: its configuration in the environment is all they have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testkit.engine import MODEL_NAME
from testkit.engine_facts import facts_of, metrics_page, samples
from testkit.engine_process import EngineProcess
from testkit.http_client import ask, reset_own_cache

pytestmark = pytest.mark.timeout(600)
SMALL = ("--enforce-eager", "--max-model-len", "2048", "--enable-prompt-tokens-details")
PROMPT = "The keeper of the lighthouse wrote of wind, tides and ships. " * 40
"""Some hundred tokens: several chunks in every number type."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "kvpool.yaml"
    file.write_text(json.dumps({"version": 1, "tiers": {"cpu": {"size": "128Mi"}}}))
    return file


def assert_served_from_memory(url: str) -> None:
    """The second answer comes from kvpool's memory tier, and is the first one's."""
    computed = ask(url, MODEL_NAME, PROMPT)
    assert computed.cached_tokens == 0
    reset_own_cache(url)
    loaded = ask(url, MODEL_NAME, PROMPT)
    assert loaded.cached_tokens == facts_of(url).cacheable_tokens(loaded.prompt_tokens) > 0
    assert loaded.text == computed.text  # float32: computed and loaded are one arithmetic, see docs/texts.md


def state_of(url: str) -> tuple[str, str]:
    """What the engine's `/metrics` say became of kvpool."""
    ((state, reason),) = [
        (labels["state"], labels["reason"])
        for labels, value in samples(metrics_page(url), "kvpool_engine_state")
        if value == 1
    ]
    return state, reason


@pytest.mark.slow
def test_the_environment_alone(config: Path, tmp_path: Path) -> None:
    """No flag names kvpool."""
    engine = EngineProcess("alone", tmp_path, config=config, transfer=None, dtype="float32", arguments=SMALL)
    try:
        engine.start()
        engine.serving()
        assert_served_from_memory(engine.url)
        assert state_of(engine.url) == ("active", "switched on by the environment")
    finally:
        engine.end()


def test_lmcache_in_a_file_of_vllms_is_replaced(config: Path, tmp_path: Path) -> None:
    """LMCache is not installed here: an engine that still had its connector would not start."""
    file = tmp_path / "vllm.yaml"
    transfer = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    file.write_text(json.dumps({"kv-transfer-config": transfer, "max-num-seqs": 4}))
    engine = EngineProcess(
        "file", tmp_path, config=config, transfer=None, dtype="float32",
        arguments=(*SMALL, "--config", str(file)), variables={"KVPOOL_CONFLICT_POLICY": "Replace"},
    )  # fmt: skip
    try:
        engine.start()
        engine.serving()
        assert_served_from_memory(engine.url)
        assert state_of(engine.url) == ("active", "in place of LMCacheConnectorV1")
    finally:
        engine.end()
