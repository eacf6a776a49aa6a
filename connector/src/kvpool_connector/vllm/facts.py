"""Gathers what the identity document needs from vLLM's configuration, in the same way in every process of an engine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm
from huggingface_hub import snapshot_download
from vllm.platforms import current_platform

from kvpool_connector.config import ConfigError, ConnectorConfig
from kvpool_connector.format import VERSION
from kvpool_connector.weights import weights_fingerprint

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.kv_offload.config import OffloadingConfig

_ROPE_DEPENDS_ON_LENGTH = ("dynamic", "longrope")


def engine_facts(vllm_config: VllmConfig, config: ConnectorConfig) -> dict[str, Any]:
    """Everything but the layout, as plain JSON values.

    Raises:
        ConfigError: the weights cannot be identified.
    """
    model, cache = vllm_config.model_config, vllm_config.cache_config
    return {
        "format": VERSION,
        "vllm": vllm.__version__,
        "tenant": config.tenant,
        "weights": _weights(model, config.model_revision),
        "architecture": _architecture(model),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "kv_dtype": str(cache.cache_dtype),
        "hash_algorithm": cache.prefix_caching_hash_algo,
        "hash_seed": hashlib.sha256(os.environ.get("PYTHONHASHSEED", "unset").encode()).hexdigest()[:16],
        "speculative": _speculative(vllm_config),
        "device": _device(vllm_config),
    }


def layout_facts(offloading: OffloadingConfig) -> dict[str, Any]:
    """How the bytes lie, from vLLM's normalised view, which is the same on the scheduler's and the workers' side."""
    parallel = offloading.parallel
    return {
        "layout": offloading.kv_cache_layout,
        "bytes_per_block": offloading.worker_kv_bytes_per_block,
        "blocks_per_chunk": offloading.cache.blocks_per_chunk,
        "tokens_per_hash": offloading.cache.tokens_per_hash,
        "groups": [[group.tokens_per_block, *group.layer_names] for group in offloading.groups],
        "parallel": [parallel.world_size, parallel.tp_size, parallel.pp_size, parallel.pcp_size, parallel.dcp_size],
    }


def _weights(model: ModelConfig, revision: str | None) -> str:
    path = Path(model.model)
    if revision is not None:
        return f"{path.name if path.is_absolute() else model.model}@{revision}"
    if path.exists():
        try:
            return weights_fingerprint(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model_revision: {error}; or name the weights' revision there") from None
    try:
        # The weights are on this machine already; the folder's name in the hub's cache is the immutable commit.
        return (
            f"{model.model}@{Path(snapshot_download(model.model, revision=model.revision, local_files_only=True)).name}"
        )
    except Exception as error:
        raise ConfigError(
            f"model_revision: the weights of {model.model!r} cannot be identified ({error}); name their revision there"
        ) from None


def _architecture(model: ModelConfig) -> str:
    """A digest of the model's configuration as vLLM uses it, overrides included."""
    description = model.hf_config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        description.pop(volatile, None)
    rope = json.dumps(description.get("rope_parameters") or description.get("rope_scaling") or {}, default=str)
    if any(kind in rope for kind in _ROPE_DEPENDS_ON_LENGTH):
        description["max_model_len"] = model.max_model_len
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _speculative(vllm_config: VllmConfig) -> str:
    """Draft layers may share KV groups with the model's."""
    speculative = vllm_config.speculative_config
    return (
        "" if speculative is None else f"{speculative.method}:{speculative.model}:{speculative.num_speculative_tokens}"
    )


def _device(vllm_config: VllmConfig) -> list[str]:
    """Kind of device, and what decides how its kernels pack a block."""
    backend = str(vllm_config.attention_config.backend)
    if not current_platform.is_cpu():
        return [current_platform.device_type, str(current_platform.get_device_capability()), backend]
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    model, cache = vllm_config.model_config, vllm_config.cache_config
    assert isinstance(model.dtype, torch.dtype)  # resolved by the time a connector is built
    # CPU kernels re-read a block in an order of their own, by instruction set: such bytes mean nothing to another CPU.
    isa = _get_attn_isa(model.dtype, cache.block_size, model.get_head_size(), cache.cache_dtype)
    return ["cpu", platform.machine(), isa, backend]
