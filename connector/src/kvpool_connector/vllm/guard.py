"""What vLLM decides about a connector before it builds one, and kvpool's say in it.

1. vLLM refuses some engines beside any connector, before the connector's own refusals and its
   ``on_failure`` can speak. :func:`before` takes the connector out again, or says why not.
2. vLLM takes every connector that loads for one that receives prompts from elsewhere, and then
   accepts ready-made embeddings from clients. kvpool needs none: :func:`after` sets that back.
3. vLLM tells each data-parallel engine that it is alone: :func:`after` notes how many share a node.

vLLM offers no hook for this, so the plug-in (:mod:`kvpool_connector.vllm.plugin`) wraps the one
method in which a configuration is completed; docs/adr/0010 has the reasons. Configurations of
other connectors pass through untouched. Sources: vLLM 0.32, ``config/vllm.py``
(`_verify_kv_transfer_compat`, `_resolve_mm_embedding_inputs`), ``v1/core/sched/scheduler.py``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from kvpool_connector.config import ConfigError
from kvpool_connector.log import get_logger
from kvpool_connector.names import CONNECTOR
from kvpool_connector.vllm import failure

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = get_logger(__name__)

LOCAL_ENGINES = "kvpool.local_engines"
"""Key in the connector's extra configuration: data-parallel engines of this node."""
ENV_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Whether clients may send embeddings of images and the like, and leave their tensors out."""

    accepted: bool
    optional: bool


def refusals(vllm_config: VllmConfig, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield each reason for which vLLM refuses an engine beside any connector."""
    model = vllm_config.model_config
    if model is not None and model.is_encoder_decoder:
        yield "vLLM runs no encoder-decoder model beside a KV connector"
    cumem = model is not None and getattr(model, "enable_cumem_allocator", False)
    if EXPANDABLE in environ.get(ENV_ALLOCATOR, "") and not cumem:
        yield f"vLLM takes no {ENV_ALLOCATOR}={EXPANDABLE} beside a KV connector: unset it"
    if getattr(vllm_config.cache_config, "use_replayssm", False):
        yield "vLLM takes no --use-replayssm beside a KV connector: remove it"


def before(vllm_config: VllmConfig) -> None:
    """Take kvpool out of an engine that vLLM would refuse because of it.

    Raises:
        ConfigError: ``on_failure`` is "stop"; one sentence with each reason and the ways out.
    """
    transfer = vllm_config.kv_transfer_config
    if transfer is None or transfer.kv_connector != CONNECTOR:
        return
    found = "; ".join(refusals(vllm_config))
    if not found:
        return
    if not failure.continues(transfer.kv_connector_extra_config):
        raise ConfigError(f"kvpool does not serve this engine: {found}. Or {failure.WAY_OUT}")
    logger.error("the engine runs without kvpool's cache: %s", found)
    vllm_config.kv_transfer_config = None


def embeddings(vllm_config: VllmConfig) -> Embeddings | None:
    """Return what the engine accepts; None where its model takes text alone."""
    model = vllm_config.model_config
    inputs = None if model is None else model.multimodal_config
    if inputs is None:
        return None
    return Embeddings(inputs.enable_mm_embeds, getattr(inputs, "allow_missing_mm_embeddings", False))


def after(vllm_config: VllmConfig, accepted: Embeddings | None) -> None:
    """Set back what vLLM widened because of kvpool, and note what it is about to forget.

    Args:
        accepted: what the engine accepted before vLLM looked at the connector.
    """
    transfer = vllm_config.kv_transfer_config
    if transfer is None or transfer.kv_connector != CONNECTOR:
        return
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_size > 1 and parallel.data_parallel_backend == "mp":  # Ray may put several on a node
        transfer.kv_connector_extra_config[LOCAL_ENGINES] = parallel.data_parallel_size_local
    encoders = getattr(vllm_config, "ec_transfer_config", None)
    if accepted is None or (encoders is not None and encoders.is_ec_consumer):
        return  # embeddings come from an encoder elsewhere, which the user asked for
    assert vllm_config.model_config is not None
    inputs = vllm_config.model_config.multimodal_config
    assert inputs is not None
    inputs.enable_mm_embeds = accepted.accepted
    inputs.allow_missing_mm_embeddings = accepted.optional


def completed(vllm_config: VllmConfig, complete: Callable[[], None]) -> None:
    """Have vLLM complete a configuration with kvpool, with :func:`before` and :func:`after` around it."""
    before(vllm_config)
    accepted = embeddings(vllm_config)
    complete()
    after(vllm_config, accepted)
