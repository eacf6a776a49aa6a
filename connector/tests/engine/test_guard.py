"""What vLLM decides about a connector before it builds one; no engine is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2AudioConfig, Qwen2AudioEncoderConfig, Qwen2Config, WhisperConfig
from vllm.config import CacheConfig, KVTransferConfig, ModelConfig, VllmConfig

from kvpool_connector.vllm.guard import refusals
from kvpool_connector.vllm.plugin import register

EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128,expandable_segments:True"}


@pytest.fixture(autouse=True)
def _plugin() -> None:
    """vLLM calls it in each of its processes, as a plug-in."""
    register()


def transfer(name: str = "KVPoolConnector", role: Any = "kv_both") -> KVTransferConfig:
    module = "kvpool_connector.vllm" if name == "KVPoolConnector" else None
    return KVTransferConfig(kv_connector=name, kv_role=role, kv_connector_module_path=module)


def model_of(folder: Path, config: Any, architecture: str, **options: Any) -> ModelConfig:
    """A model's configuration without weights."""
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": [architecture]}))
    return ModelConfig(str(folder), skip_tokenizer_init=True, dtype="float32", **options)


@pytest.fixture
def whisper(tmp_path: Path) -> ModelConfig:
    """A speech model: encoder and decoder."""
    return model_of(tmp_path, WhisperConfig(), "WhisperForConditionalGeneration")


@pytest.fixture
def audio(tmp_path: Path) -> ModelConfig:
    """A decoder that takes sounds. It stands for models of images, whose code needs more packages than are here."""
    config = Qwen2AudioConfig(audio_config=Qwen2AudioEncoderConfig(), text_config=Qwen2Config(num_hidden_layers=2))
    return model_of(tmp_path, config, "Qwen2AudioForConditionalGeneration")


# ---- refused by vLLM beside any connector ------------------------------------------------------------------


def test_expandable_segments_stop_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*EXPANDABLE.copy().popitem())
    with pytest.raises(ValueError, match=r"PYTORCH_CUDA_ALLOC_CONF=.* unset it.*set on_failure: continue"):
        VllmConfig(kv_transfer_config=transfer())


def test_expandable_segments_continue_without_the_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*EXPANDABLE.copy().popitem())
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    assert VllmConfig(kv_transfer_config=transfer()).kv_transfer_config is None


def test_another_connector_is_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its addresses may be registered somewhere, which is why vLLM refuses it."""
    monkeypatch.setenv(*EXPANDABLE.copy().popitem())
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    with pytest.raises(ValueError, match="KV connector NixlConnector is incompatible"):
        VllmConfig(kv_transfer_config=transfer("NixlConnector"))


def test_an_encoder_decoder_model_continues_without_the_connector(
    whisper: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's scheduler asserts that there is none, before it builds one."""
    with pytest.raises(ValueError, match="no encoder-decoder model beside a KV connector"):
        VllmConfig(model_config=whisper, kv_transfer_config=transfer())
    monkeypatch.setenv("KVPOOL_ON_FAILURE", "continue")
    assert VllmConfig(model_config=whisper, kv_transfer_config=transfer()).kv_transfer_config is None


@pytest.mark.parametrize(
    ("environ", "cache", "found"),
    [
        ({}, {}, []),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, {}, []),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, {}, []),
        (EXPANDABLE, {}, ["PYTORCH_CUDA_ALLOC_CONF"]),
        ({}, {"use_replayssm": True}, ["--use-replayssm"]),
    ],
)
def test_refusals(environ: dict[str, str], cache: dict[str, Any], found: list[str]) -> None:
    """Each names the setting."""
    config = VllmConfig()
    config.cache_config = CacheConfig(**cache)
    assert [any(name in text for text in refusals(config, environ)) for name in found] == [True] * len(found)
    assert len(list(refusals(config, environ))) == len(found)


# ---- embeddings from clients -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["kv_both", "kv_consumer", "kv_producer"])
@pytest.mark.parametrize("asked", [False, True])
def test_an_engine_accepts_what_it_accepted_without_kvpool(audio: ModelConfig, role: str, asked: bool) -> None:
    """Clients may send embeddings if the user said so, and never without their tensors."""
    assert audio.multimodal_config is not None
    audio.multimodal_config.enable_mm_embeds = asked
    config = VllmConfig(model_config=audio, kv_transfer_config=transfer(role=role))
    inputs = config.model_config.multimodal_config
    assert inputs is not None
    assert (inputs.enable_mm_embeds, inputs.allow_missing_mm_embeddings) == (asked, False)


def test_another_consumer_accepts_what_vllm_lets_it(audio: ModelConfig) -> None:
    """A decode engine without our connector is none of our business. Fails when vLLM no longer widens anything."""
    inputs = VllmConfig(
        model_config=audio, kv_transfer_config=transfer("NixlConnector", "kv_consumer")
    ).model_config.multimodal_config
    assert inputs is not None
    assert inputs.enable_mm_embeds
