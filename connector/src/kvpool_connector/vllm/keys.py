"""Whether vLLM's block hashes, which are kvpool's keys, say all that a request's blocks depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from vllm.v1.request import Request


def covered(request: Request, dtype: torch.dtype | str) -> bool:
    """Return whether two requests with equal block hashes have equal blocks.

    Of a prompt of embeddings vLLM 0.32 hashes the bytes (`_gen_prompt_embeds_extra_hash_keys`). It
    does not hash the mask that tells embeddings from tokens (``prompt_is_token_ids``): a zero
    vector and token 0 are the same to it. Nor their type, which its server, but not its Python
    interface, makes the model's.

    Args:
        dtype: of the model.
    """
    if request.prompt_embeds is None:
        return True
    return request.prompt_is_token_ids is None and request.prompt_embeds.dtype == dtype
