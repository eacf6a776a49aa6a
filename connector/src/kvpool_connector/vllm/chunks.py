"""How many of vLLM's blocks make one stored part.

Large parts move faster: below about 1 MiB the cost per key of a store, a disk and a batched device copy shows. Small chunks
hit more: vLLM counts hits in whole chunks, so a shared prefix is rounded down to one. Hence: the fewest blocks that reach
1 MiB, but no chunk of more than 128 tokens, so that a shared prefix of 300 tokens is not rounded down to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvpool_connector.config import ConfigError

ENOUGH_BYTES = 1 << 20
MOST_TOKENS = 128


def blocks_per_chunk(
    block_bytes: int, tokens_per_block: Sequence[int], *, single_full_group: bool, chunk_tokens: int | None
) -> int:
    """Blocks of one chunk.

    Args:
        block_bytes: of one rank's part of a block.
        tokens_per_block: by KV group.
        single_full_group: one group of full attention. With sliding windows a chunk may lack blocks in its middle, and
            vLLM's interface does not say which: chunks are single blocks there.
        chunk_tokens: what the user fixed.

    Raises:
        ConfigError: ``chunk_tokens`` cannot be had; the message names what can.
    """
    tokens = tokens_per_block[0]
    if chunk_tokens is None:
        if not single_full_group or block_bytes <= 0:
            return 1
        count = 1
        while block_bytes * count < ENOUGH_BYTES and tokens * count * 2 <= MOST_TOKENS:
            count *= 2
        return count
    if not single_full_group:
        if all(chunk_tokens == each for each in tokens_per_block):
            return 1
        raise ConfigError(
            f"chunk_tokens: {chunk_tokens} cannot be had: this model has several KV groups or sliding windows, whose chunks "
            f"are vLLM's blocks of {_listed(tokens_per_block)} tokens: remove chunk_tokens"
        )
    if chunk_tokens % tokens:
        below = max(chunk_tokens // tokens, 1) * tokens
        raise ConfigError(
            f"chunk_tokens: {chunk_tokens} is no multiple of vLLM's block size of {tokens} tokens: use {below} or "
            f"{below + tokens}, or set vLLM's --block-size"
        )
    return chunk_tokens // tokens


def blocks_near_chunk(
    block_bytes: int, tokens_per_block: Sequence[int], *, single_full_group: bool, chunk_tokens: int
) -> tuple[int, str]:
    """As :func:`blocks_per_chunk`, for a number of tokens that was chosen without knowing the model: the nearest that can be had.

    Returns:
        the blocks, and what to say if it is not the number asked for.
    """
    tokens = tokens_per_block[0]
    wanted = chunk_tokens
    if single_full_group and wanted % tokens:
        wanted = max(wanted // tokens, 1) * tokens
    try:
        count = blocks_per_chunk(
            block_bytes, tokens_per_block, single_full_group=single_full_group, chunk_tokens=wanted
        )
    except ConfigError:
        return 1, (
            f"chunks of {chunk_tokens} tokens cannot be had: this model has several KV groups or sliding windows, whose chunks "
            f"are vLLM's blocks of {_listed(tokens_per_block)} tokens"
        )
    if wanted == chunk_tokens:
        return count, ""
    return count, f"chunks of {chunk_tokens} tokens are made {wanted}: a multiple of vLLM's block size of {tokens}"


def _listed(tokens: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(tokens))))
