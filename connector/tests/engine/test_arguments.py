"""kvpool in engines that have its configuration in the environment and do not name it; no engine is started."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from transformers import LlamaConfig, WhisperConfig
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs

from kvpool_connector.config import ConfigError
from kvpool_connector.names import ENV_CONFIG_FILE
from kvpool_connector.vllm import arguments, plugin
from kvpool_connector.vllm.choice import Conflict, Given
from kvpool_connector.vllm.engine_state import LONGEST_REASON, METRIC, short
from testkit.engine import CONNECTOR

build = EngineArgs.create_engine_config
"""vLLM's own method: other tests of this process may not find it wrapped."""


@pytest.fixture(autouse=True)
def _wrapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plug-in in a process whose environment has a configuration."""
    config = tmp_path / "kvpool.yaml"
    config.write_text(json.dumps({"version": 1, "tiers": {"cpu": {"size": "64Mi"}}}))
    monkeypatch.setenv(ENV_CONFIG_FILE, str(config))
    monkeypatch.setattr(EngineArgs, "create_engine_config", build)
    plugin.register()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A configuration without weights."""
    config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return written(tmp_path, config, "LlamaForCausalLM")


def written(folder: Path, config: Any, architecture: str) -> Path:
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": [architecture]}))
    return folder


def completed(model: Path, **options: Any) -> VllmConfig:
    """What an engine would be started with."""
    given = EngineArgs(model=str(model), skip_tokenizer_init=True, dtype="float32", max_model_len=256, **options)
    return given.create_engine_config()


def states() -> Iterator[tuple[str, str]]:
    """State and reason as `/metrics` tells them."""
    for metric in REGISTRY.collect():
        if metric.name == METRIC:
            yield from ((one.labels["state"], one.labels["reason"]) for one in metric.samples if one.value == 1)


def test_vllms_method_is_the_one_that_is_wrapped() -> None:
    """A vLLM that builds configurations otherwise must not look as if kvpool were on."""
    parameters = inspect.signature(build).parameters
    assert next(iter(parameters)) == "self"
    named = set(EngineArgs.__dataclass_fields__)
    assert {"kv_transfer_config", "prefix_caching_hash_algo", "kv_offloading_size"} <= named
    default = EngineArgs.__dataclass_fields__["prefix_caching_hash_algo"].default
    assert default == Given().hash_algorithm


def test_an_engine_gets_the_connector(model: Path) -> None:
    found = completed(model)
    assert found.kv_transfer_config is not None
    assert found.kv_transfer_config.kv_connector == "KVPoolConnector"
    assert found.kv_transfer_config.kv_load_failure_policy == "recompute"
    assert found.cache_config.prefix_caching_hash_algo == "sha256_cbor"
    assert list(states()) == [("active", "switched on by the environment")]


def test_one_that_names_it_keeps_its_own_settings(model: Path) -> None:
    own = KVTransferConfig(
        kv_connector="KVPoolConnector", kv_connector_module_path="kvpool_connector.vllm", kv_role="kv_producer"
    )
    found = completed(model, kv_transfer_config=own)
    assert found.kv_transfer_config is not None
    assert found.kv_transfer_config.kv_role == "kv_producer"
    assert found.cache_config.prefix_caching_hash_algo == "sha256"
    assert list(states()) == [("active", "configured by --kv-transfer-config")]


@pytest.mark.parametrize(
    ("word", "connector", "state"),
    [
        ("", "OffloadingConnector", "skipped"),
        ("Multi", "MultiConnector", "active"),
        ("Replace", "OffloadingConnector", "skipped"),
    ],
)
def test_one_that_has_another(
    model: Path, monkeypatch: pytest.MonkeyPatch, word: str, connector: str, state: str
) -> None:
    monkeypatch.setenv("KVPOOL_CONFLICT_POLICY", word)
    given = KVTransferConfig(
        kv_connector="OffloadingConnector", kv_role="kv_both", kv_connector_extra_config={"cpu_bytes_to_use": 1 << 26}
    )
    found = completed(model, kv_transfer_config=given)
    assert found.kv_transfer_config is not None
    assert found.kv_transfer_config.kv_connector == connector
    assert [one for one, _ in states()] == [state]
    if connector == "MultiConnector":
        ours, theirs = found.kv_transfer_config.kv_connector_extra_config["connectors"]
        assert ours["kv_connector"] == "KVPoolConnector"
        assert theirs["kv_connector_extra_config"] == {"cpu_bytes_to_use": 1 << 26}


def test_one_that_must_not_have_another(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVPOOL_CONFLICT_POLICY", "Fail")
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    given = KVTransferConfig(kv_connector="OffloadingConnector", kv_role="kv_both")
    with pytest.raises(Conflict, match="the KV connector OffloadingConnector is configured"):
        completed(model, kv_transfer_config=given)


# ---- vLLM or kvpool refuse


def test_an_engine_that_vllm_refuses_with_any_connector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts without kvpool, or it says why not."""
    speech = written(tmp_path, WhisperConfig(), "WhisperForConditionalGeneration")
    with pytest.raises(ValueError, match="no encoder-decoder model beside a KV connector"):
        completed(speech)
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    assert completed(speech).kv_transfer_config is None
    ((state, reason),) = states()
    assert state == "disabled"
    assert "encoder-decoder" in reason


def test_one_that_names_kvpool_and_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What became of it is told as for any other."""
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    speech = written(tmp_path, WhisperConfig(), "WhisperForConditionalGeneration")
    own = KVTransferConfig(
        kv_connector="KVPoolConnector", kv_connector_module_path="kvpool_connector.vllm", kv_role="kv_both"
    )
    assert completed(speech, kv_transfer_config=own).kv_transfer_config is None
    assert [state for state, _ in states()] == ["disabled"]


def test_a_wrong_file_is_nothing_to_an_engine_that_leaves_kvpool_out(model: Path, tmp_path: Path) -> None:
    (tmp_path / "kvpool.yaml").write_text("version: 1\ntiers: {cpu: {sise: 1Gi}}\n")
    given = KVTransferConfig(
        kv_connector="OffloadingConnector", kv_role="kv_both", kv_connector_extra_config={"cpu_bytes_to_use": 1 << 26}
    )
    assert completed(model, kv_transfer_config=given).kv_transfer_config is given
    assert [state for state, _ in states()] == ["skipped"]


def test_a_refusal_of_pydantics_is_told_in_its_words(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a count of errors, and without the arguments in it."""

    def wrong(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
        if self.kv_transfer_config is not None:
            KVTransferConfig(kv_connector="a", kv_role="kv_both", kv_port="no port")  # type: ignore[arg-type]
        return build(self, *args, **kwargs)

    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    monkeypatch.setattr(EngineArgs, "create_engine_config", wrong)
    arguments.watch(EngineArgs)
    assert completed(model).kv_transfer_config is None
    ((_, reason),) = states()
    assert "valid integer" in reason
    assert "validation error" not in reason


def refuses(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
    """Stands for a vLLM that refuses each configuration with a connector, for a reason that nobody foresaw, after it has
    changed the arguments."""
    refused = self.kv_transfer_config is not None
    self.max_model_len = -1 if refused else self.max_model_len
    if refused:
        raise ValueError("no connectors on a full moon\nsecond line")
    return build(self, *args, **kwargs)


def test_a_refusal_that_nobody_foresaw(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineArgs, "create_engine_config", refuses)
    arguments.watch(EngineArgs)
    with pytest.raises(ValueError, match="full moon"):
        completed(model)
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    found = completed(model)
    assert found.kv_transfer_config is None
    assert found.model_config.max_model_len == 256
    assert found.cache_config.prefix_caching_hash_algo == "sha256"
    assert list(states()) == [("disabled", "vLLM refuses this engine with kvpool: no connectors on a full moon")]


def test_arguments_that_are_wrong_without_kvpool(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine fails with vLLM's own words."""
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    with pytest.raises(Exception, match="block_size"):
        completed(model, block_size=-5)


@pytest.mark.parametrize("wrong", ["file", "policy"])
def test_a_configuration_that_cannot_be_used(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if wrong == "file":
        (tmp_path / "kvpool.yaml").write_text("version: 1\ntiers: {cpu: {sise: 1Gi}}\n")
    else:
        monkeypatch.setenv("KVPOOL_CONFLICT_POLICY", "Sometimes")
    named = "sise" if wrong == "file" else "KVPOOL_CONFLICT_POLICY"
    with pytest.raises(ConfigError, match=named):
        completed(model)
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    assert completed(model).kv_transfer_config is None
    ((state, reason),) = states()
    assert state == "disabled"
    assert named in reason


def test_a_vllm_that_builds_configurations_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(EngineArgs, "create_engine_config")
    plugin.register()
    ((state, reason),) = states()
    assert state == "skipped"
    assert reason.startswith("unsupported: ")
    assert "create_engine_config" in reason


def test_arguments_of_another_vllm(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lacks an argument starts without kvpool."""

    def lacking(given: EngineArgs) -> Given:
        raise AttributeError("'EngineArgs' object has no attribute 'kv_offloading_size'")

    monkeypatch.setattr(arguments, "given_by", lacking)
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    assert completed(model).kv_transfer_config is None
    assert list(states()) == [("disabled", "'EngineArgs' object has no attribute 'kv_offloading_size'")]


def test_a_reason_is_one_short_line() -> None:
    assert short("one\ntwo") == "one"
    assert short("") == "no reason given"
    assert len(short("x" * 1000)) == LONGEST_REASON


# ---- engines of others

PROBE = """
import sys, time
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
before = set(sys.modules)
build = EngineArgs.create_engine_config
began = time.perf_counter()
from kvpool_connector.vllm.plugin import register
register()
took = time.perf_counter() - began
print(f"{took:.6f}", EngineArgs.create_engine_config is build, *sorted(set(sys.modules) - before))
"""


def test_an_engine_without_the_variable_pays_next_to_nothing() -> None:
    """One small module is imported, and the packages that it lies in. That takes less than a millisecond where nothing else
    runs; the bound is for hosts that are slow and busy."""
    times = []
    for _ in range(3):
        environment = {"PYTHONPATH": str(CONNECTOR), "PATH": "/usr/bin:/bin", "VLLM_NO_USAGE_STATS": "1"}
        answer = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True
        )
        took, unwrapped, *modules = answer.stdout.splitlines()[-1].split()
        assert unwrapped == "True"
        assert set(modules) == {
            "kvpool_connector", "kvpool_connector.log", "kvpool_connector.names", "kvpool_connector.vllm",
            "kvpool_connector.vllm.plugin",
        }  # fmt: skip
        times.append(float(took))
    assert min(times) < 0.05
