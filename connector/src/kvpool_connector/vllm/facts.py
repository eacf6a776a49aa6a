"""Gathers what the identity document needs from vLLM's configuration, in the same way in every
process.

Only inputs count: files, revisions, settings. ``ModelConfig.hf_config`` is none: a model's code
writes into it while it loads (``rope_parameters`` in ``models/deepseek_v2.py``, ``max_model_len``
in ``models/minimax_m2.py``), in the ranks' processes and not in the scheduler's, so the two would
disagree. It also holds defaults of the installed version of Transformers.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm
from huggingface_hub import snapshot_download
from vllm import envs
from vllm.platforms import current_platform
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import resolve_none_hash_seed

from kvpool_connector.config import ConfigError, ConnectorConfig
from kvpool_connector.format import VERSION
from kvpool_connector.vllm.kv_abi import kv_abi
from kvpool_connector.vllm.rope import depends_on_length
from kvpool_connector.weights import configuration_fingerprint, weights_fingerprint

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.kv_offload.config import OffloadingConfig


def engine_facts(vllm_config: VllmConfig, config: ConnectorConfig) -> dict[str, Any]:
    """Everything but the layout, as plain JSON values.

    Raises:
        ConfigError: the weights cannot be identified.
    """
    model = vllm_config.model_config
    cache = vllm_config.cache_config
    return {
        "format": VERSION,
        "kv_abi": kv_abi(vllm.__version__) or vllm.__version__,
        "tenant": config.tenant,
        "weights": _weights(model, config.model_revision, vllm_config.load_config.download_dir),
        "configuration": _configuration(model),
        "settings": _settings(vllm_config),
        "length": _length(model),
        "multimodal": _multimodal(model),
        "adapters": _adapters(vllm_config),
        "dtype": str(model.dtype),
        "quantization": [str(model.quantization), str(model.quantization_config)],
        "kv_dtype": [str(cache.cache_dtype), *cache.kv_cache_dtype_skip_layers],
        "hash_algorithm": cache.prefix_caching_hash_algo,
        "hash_seed": _hash_seed(vllm_config),
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


def hash_seed(algorithm: str) -> str | None:
    """Return the seed of vLLM's block hashes, or None where each process draws a random one.

    Asks vLLM twice: it draws a new one each time where PYTHONHASHSEED is not set and the algorithm
    is not a cryptographic one. The seed in use is drawn later, in the scheduler's process alone
    (``init_none_hash``), and no other process can know it.
    """
    hash_of = get_hash_fn_by_name(algorithm)
    seed = resolve_none_hash_seed(hash_of)
    return seed if seed == resolve_none_hash_seed(hash_of) else None


def _hash_seed(vllm_config: VllmConfig) -> str:
    """Stand for a random seed by the engine's own id, which vLLM draws at each start.

    Blocks of an engine's former life then have another identity: nothing would ever hit them.
    """
    seed = hash_seed(vllm_config.cache_config.prefix_caching_hash_algo)
    if seed is None:
        transfer = vllm_config.kv_transfer_config
        return f"random, of engine {None if transfer is None else transfer.engine_id}"
    return hashlib.sha256(seed.encode()).hexdigest()[:16]


def _weights(model: ModelConfig, revision: str | None, download_dir: str | None) -> str:
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
        folder = snapshot_download(model.model, revision=model.revision, local_files_only=True, cache_dir=download_dir)
        return f"{model.model}@{Path(folder).name}"
    except Exception as error:
        raise ConfigError(
            f"model_revision: the weights of {model.model!r} cannot be identified ({error}); name their revision there"
        ) from None


def _configuration(model: ModelConfig) -> list[str]:
    """Return what turns the weights into a model. Files of the hub are named by the weights' commit."""
    folder = Path(model.model)
    elsewhere = model.hf_config_path
    if elsewhere is not None and Path(elsewhere).is_dir():
        elsewhere = configuration_fingerprint(Path(elsewhere))
    elif elsewhere is not None:
        elsewhere = f"{elsewhere}@{getattr(model, '_hf_config_revision', None)}"
    return [
        configuration_fingerprint(folder) if folder.is_dir() else "",
        str(elsewhere),
        str(model.code_revision),
        str(model.config_format),
    ]


def _settings(vllm_config: VllmConfig) -> str:
    """Return a digest of the settings that make another model of the same files.

    Raises:
        ConfigError: a setting is a function, of which no process can tell what it does.
    """
    model = vllm_config.model_config
    load = vllm_config.load_config
    more = vllm_config.additional_config
    if callable(model.hf_overrides):
        raise ConfigError(
            "hf_overrides is a function, and kvpool cannot tell one function's model from another's: give a dictionary"
        )
    settings = {
        "hf_overrides": model.hf_overrides,
        "model_impl": str(model.model_impl),
        "model_class_overrides": model.model_class_overrides,
        "disable_sliding_window": model.disable_sliding_window,
        "override_generation_config": model.override_generation_config,  # Llama 4 reads its attention's scale there
        "load": [str(load.load_format), load.ignore_patterns, load.model_loader_extra_config],
        "additional_config": more if isinstance(more, dict) else more.compute_hash(),
        "batch_invariant": envs.VLLM_BATCH_INVARIANT,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _length(model: ModelConfig) -> int | str | None:
    """Return the longest context where KV bytes depend on it, as it was when the weights were loaded.

    With ``--max-model-len auto`` vLLM shortens it to what fits, after the rotary tables were made.
    """
    if not depends_on_length(model.hf_config.to_dict(), model.hf_text_config.to_dict()):
        return None
    return "auto" if model.original_max_model_len == -1 else model.max_model_len


def _multimodal(model: ModelConfig) -> str:
    """Return the settings that change an image's embedding under the same hash of the image."""
    settings = model.multimodal_config
    if settings is None:
        return ""
    values = [
        settings.mm_processor_kwargs,
        settings.mm_hasher_algorithm,
        settings.mm_encoder_attn_dtype,
        settings.mm_encoder_fp8_scale_path,
        settings.video_pruning_rate,
        settings.video_pruning_method,
    ]
    return json.dumps(values, sort_keys=True, default=str)


def _adapters(vllm_config: VllmConfig) -> list[str]:
    """Return the settings that change the effect of an adapter whose files are the same.

    Engines with vLLM's defaults share their blocks with engines that serve no adapters.
    """
    lora = vllm_config.lora_config
    if lora is None:
        return []
    unusual = {
        "target_modules": lora.target_modules,
        "lora_dtype": lora.lora_dtype != vllm_config.model_config.dtype and str(lora.lora_dtype),
        "enable_tower_connector_lora": lora.enable_tower_connector_lora,
    }
    return [f"{name}={value}" for name, value in unusual.items() if value]


def _speculative(vllm_config: VllmConfig) -> str:
    """Draft layers may share KV groups with the model's."""
    speculative = vllm_config.speculative_config
    return (
        "" if speculative is None else f"{speculative.method}:{speculative.model}:{speculative.num_speculative_tokens}"
    )


def _device(vllm_config: VllmConfig) -> list[str]:
    """Kind of device, and what decides how its kernels pack a block."""
    attention = vllm_config.attention_config
    backend = [str(attention.backend), *(f"{kind}={name}" for kind, name in sorted(attention.backend_per_kind.items()))]
    if not current_platform.is_cpu():
        return [current_platform.device_type, str(current_platform.get_device_capability()), *backend]
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    model, cache = vllm_config.model_config, vllm_config.cache_config
    assert isinstance(model.dtype, torch.dtype)  # resolved by the time a connector is built
    # CPU kernels re-read a block in an order of their own, by instruction set: such bytes mean nothing to another CPU.
    isa = _get_attn_isa(model.dtype, cache.block_size, model.get_head_size(), cache.cache_dtype)
    return ["cpu", platform.machine(), isa, *backend]
