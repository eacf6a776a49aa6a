"""Which models and settings are served: what was tested in a real engine; everything else is refused at start.

A layout that nobody tried may well work, but where it does not, the text is wrong and nothing says so. ``docs/compatibility.md``
has the list with what was tested. The decision is a function of plain facts; gathering them is at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, UniformTypeKVCacheSpecs

from kvpool_connector.config import ConfigError
from kvpool_connector.vllm.failure import WAY_OUT

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

SPECS = frozenset({"FullAttentionSpec", "SlidingWindowSpec", "MLAAttentionSpec"})
"""Kinds of KV memory, exactly: vLLM derives kinds with other contents from these."""
SPECULATIVE = frozenset({"ngram"})


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decides. The defaults are a model with full attention on one rank."""

    kv_specs: frozenset[str] = frozenset({"FullAttentionSpec"})
    """Class names in ``vllm/v1/kv_cache_interface.py``."""
    mixed_layers: bool = False
    """Layers of different shapes in one KV group."""
    uncached_groups: int = 0
    """KV groups whose blocks vLLM does not hash."""
    non_causal: bool = False
    mla: bool = False
    continues_prefixes: bool = True
    """vLLM computes the rest of a prompt behind a cached or earlier part of it."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    prefill_context_parallel: int = 1
    decode_context_parallel: int = 1
    data_parallel: int = 1
    speculative: str | None = None
    """Method."""
    runner: str = "generate"
    sleep_mode: bool = False
    weight_transfer: bool = False
    sharing_fast_prefill: bool = False
    per_token_head_scales: bool = False
    calculated_scales: bool = False
    canonical_layout: bool = False


def faults(facts: Facts) -> Iterator[str]:
    """Each thing that is not served: what, why, and the setting to change where there is one."""
    for spec in sorted(facts.kv_specs - SPECS):
        why = "recurrent state is not a list of blocks" if spec == "MambaSpec" else "this KV memory was never tested"
        yield f"{spec}: {why}"
    for value, option in (
        (facts.pipeline_parallel, "--pipeline-parallel-size"),
        (facts.prefill_context_parallel, "--prefill-context-parallel-size"),
        (facts.decode_context_parallel, "--decode-context-parallel-size"),
        (facts.data_parallel, "--data-parallel-size with a model of experts"),
    ):
        if value > 1:
            yield f"{option} {value}: never seen to work: use 1"
    if facts.speculative is not None and facts.speculative not in SPECULATIVE:
        tested = ", ".join(sorted(SPECULATIVE))
        yield f"speculative decoding by {facts.speculative!r}: never tested: use {tested} or remove --speculative-config"
    if facts.runner != "generate":
        yield f"--runner {facts.runner}: only text generation reads a prefix from a cache"
    for applies, fault in (
        (facts.mixed_layers, "layers of different shapes in one KV group: never tested"),
        (facts.uncached_groups, "KV groups that vLLM keeps out of prefix caching: a hit would leave them empty"),
        (facts.non_causal, "attention that is not causal: a block depends on tokens that come after it"),
        (
            facts.mla and not facts.continues_prefixes,
            "MLA where vLLM has chunked prefill and prefix caching off: on a CPU without AMX its kernels compute a wrong "
            "text behind a hit; elsewhere set --enable-chunked-prefill",
        ),
        (
            facts.mla and facts.tensor_parallel > 1,
            "MLA with --tensor-parallel-size above 1: all ranks hold the same bytes, which vLLM stores once: use 1",
        ),
        (facts.sleep_mode, "--enable-sleep-mode: KV memory goes away while copies may run: remove it"),
        (facts.weight_transfer, "--weight-transfer-config: blocks of the former weights would be hits: remove it"),
        (facts.sharing_fast_prefill, "--kv-sharing-fast-prefill: never tested: remove it"),
        (facts.per_token_head_scales, "--kv-cache-dtype with scales per token and head: never tested: use auto"),
        (
            facts.calculated_scales,
            "--calculate-kv-scales: KV bytes would depend on the first prompts of each engine: remove it",
        ),
        (facts.canonical_layout, "kv_connector_extra_config.canonical_layout: kvpool stores parts by rank: remove it"),
    ):
        if applies:
            yield fault


def check(facts: Facts) -> None:
    """Pass, or say all that is in the way.

    Raises:
        ConfigError: names each fault and how to run without the cache.
    """
    found = "; ".join(faults(facts))
    if found:
        raise ConfigError(f"kvpool does not serve this engine: {found}. Or {WAY_OUT}")


def group_specs(kv_cache_config: KVCacheConfig) -> list[KVCacheSpec]:
    """Return each KV group's kind of memory, the same in the scheduler's process and in a rank's.

    A rank sees all layers of a group whose layers differ; for its scheduler vLLM puts the first
    layer in their place (`generate_scheduler_kv_cache_config`), and so does this function.
    """
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    return [spec.first_spec if isinstance(spec, UniformTypeKVCacheSpecs) else spec for spec in specs]


def has_mixed_layers(kv_cache_config: KVCacheConfig) -> bool:
    """Return whether some group has layers of different shapes, as both processes can see it.

    vLLM places layers of one shape together: a group that lies in several places has several shapes.
    """
    places = [set(tensor.layers) for tensor in kv_cache_config.kv_cache_tensors]
    return any(
        sum(not place.isdisjoint(group.layer_names) for place in places) > 1
        for group in kv_cache_config.kv_cache_groups
    )


def gather(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> Facts:
    """Return the facts, from what is the same in the scheduler's process and in each rank's."""
    model, parallel, scheduler = vllm_config.model_config, vllm_config.parallel_config, vllm_config.scheduler_config
    transfer = vllm_config.kv_transfer_config
    groups = group_specs(kv_cache_config)
    attention = [spec for spec in groups if isinstance(spec, AttentionSpec)]
    assert transfer is not None
    return Facts(
        kv_specs=frozenset(type(spec).__name__ for spec in groups),
        mixed_layers=has_mixed_layers(kv_cache_config),
        uncached_groups=len(groups) - len(kv_cache_config.prefix_cacheable_group_ids),
        non_causal=any(spec.non_causal for spec in attention if isinstance(spec, FullAttentionSpec)),
        mla=model.use_mla,
        continues_prefixes=scheduler.enable_chunked_prefill or vllm_config.cache_config.enable_prefix_caching,
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
        prefill_context_parallel=parallel.prefill_context_parallel_size,
        decode_context_parallel=parallel.decode_context_parallel_size,
        data_parallel=parallel.data_parallel_size,
        speculative=None if vllm_config.speculative_config is None else vllm_config.speculative_config.method,
        runner=model.runner_type,
        sleep_mode=model.enable_sleep_mode,
        weight_transfer=vllm_config.weight_transfer_config is not None,
        sharing_fast_prefill=vllm_config.cache_config.kv_sharing_fast_prefill,
        per_token_head_scales=any(spec.kv_quant_mode.is_per_token_head for spec in attention),
        calculated_scales=getattr(vllm_config.cache_config, "calculate_kv_scales", False),  # gone in vLLM 0.32
        canonical_layout=bool(transfer.kv_connector_extra_config.get("canonical_layout")),
    )
