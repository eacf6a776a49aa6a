"""Says of which models the KV bytes depend on ``--max-model-len``, by their configuration alone.

vLLM makes the table of rotary positions when it loads a model. For most kinds of rope the longest
context decides how long the table is and nothing else. For others it decides what is in it:
LongRoPE takes its long factors if the context is longer than the one of the training
(``vllm/model_executor/layers/rotary_embedding/phi3_long_rope_scaled_rope.py``), and every key of
the cache is then another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OF_FIXED_LENGTH = frozenset(
    {
        "default",
        "linear",
        "llama3",
        "ntk",
        "yarn",
        "deepseek_yarn",
        "deepseek_llama_scaling",
        "proportional",
        "mrope",
        "mllama4",
        "bailing_mrope",
        "openpangu",
    }
)
"""Kinds of rope whose values do not depend on the longest context, read in vLLM 0.32's
``rotary_embedding/__init__.py``. Any other kind, also a new one, counts as if they did. All kinds
that a model's code writes into its configuration while it loads are among these, so that the
processes of an engine agree."""
_ROPE = ("rope_parameters", "rope_scaling")
_KIND = ("rope_type", "type")
_SCALED_BY_LENGTH = ("llama4",)
"""Model types that scale attention beyond a certain longest context: ``models/llama4.py``."""


def depends_on_length(*configurations: Mapping[str, Any]) -> bool:
    """Return whether KV bytes depend on the longest context.

    Args:
        configurations: a model's configuration and that of its text model, as dictionaries. The
            text model of a multimodal one lies deeper, under ``text_config`` or another name, and
            its rope may differ from layer to layer: all levels are looked at.
    """
    return any(
        name == "dual_chunk_attention_config"
        or (name == "model_type" and str(value).startswith(_SCALED_BY_LENGTH))
        or (name in _ROPE and not OF_FIXED_LENGTH.issuperset(_kinds(value)))
        for configuration in configurations
        for name, value in _fields(configuration)
        if value is not None
    )


def _fields(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield every name and value on all levels."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield str(name), value
            yield from _fields(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _fields(value)


def _kinds(rope: Any) -> set[str]:
    """Return the kinds that a model's rope names, of all layers."""
    return {str(value) for name, value in _fields(rope) if name in _KIND}
