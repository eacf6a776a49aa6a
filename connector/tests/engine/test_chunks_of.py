"""How blocks make chunks: the size that is chosen, and which of a job's blocks belong to which key. No engine runs here."""

from __future__ import annotations

import random

import pytest
from vllm.v1.kv_offload.base import GPULoadStoreSpec

from kvpool_connector.config import ConfigError
from kvpool_connector.vllm.chunks import ENOUGH_BYTES, MOST_TOKENS, blocks_near_chunk, blocks_per_chunk
from kvpool_connector.vllm.worker import chunks_of
from kvpool_connector.worker.device.base import Chunk

KIB = 1 << 10


def chosen(block_bytes: int, *tokens: int, single: bool = True, fixed: int | None = None) -> int:
    """Blocks of a chunk."""
    return blocks_per_chunk(block_bytes, tokens, single_full_group=single, chunk_tokens=fixed)


# ---- the size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block_bytes", "tokens", "count"),
    [
        (360 * KIB, 16, 4),  # 1.4 MiB
        (2048 * KIB, 16, 1),  # enough as it is
        (1024 * KIB, 16, 1),
        (1023 * KIB, 16, 2),
        (8 * KIB, 16, 8),  # 128 tokens, and no more
        (8 * KIB, 128, 1),
        (8 * KIB, 96, 1),
    ],
)
def test_the_fewest_blocks_that_are_enough(block_bytes: int, tokens: int, count: int) -> None:
    """Large parts move faster, small chunks hit more."""
    assert chosen(block_bytes, tokens) == count


@pytest.mark.parametrize(
    ("wanted", "tokens", "single", "count", "said"),
    [
        (256, [16], True, 16, ""),
        (200, [16], True, 12, "chunks of 200 tokens are made 192: a multiple of vLLM's block size of 16"),
        (16, [128], True, 1, "chunks of 16 tokens are made 128"),
        (256, [32, 32], False, 1, "chunks of 256 tokens cannot be had: this model has several KV groups"),
        (32, [32, 32], False, 1, ""),
    ],
)
def test_the_nearest_chunk_for_who_did_not_know_the_model(
    wanted: int, tokens: list[int], single: bool, count: int, said: str
) -> None:
    """A configuration of LMCache says 256 to every model. What is done with it is said."""
    blocks, text = blocks_near_chunk(KIB, tokens, single_full_group=single, chunk_tokens=wanted)
    assert blocks == count
    assert text.startswith(said)
    assert bool(text) == bool(said)


@pytest.mark.parametrize("tokens", [1, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("block_bytes", [1 << n for n in range(0, 24, 2)] + [3 << n for n in range(0, 22, 3)])
def test_the_choice_is_the_smallest_in_its_bounds(block_bytes: int, tokens: int) -> None:
    """Half of it would be too small a part; a chunk has no more tokens than the bound, or is a single block."""
    count = chosen(block_bytes, tokens)
    assert count == 1 or (tokens * count <= MOST_TOKENS and block_bytes * count < 2 * ENOUGH_BYTES)
    assert block_bytes * count >= ENOUGH_BYTES or tokens * count * 2 > MOST_TOKENS


def test_several_groups_have_chunks_of_single_blocks() -> None:
    """vLLM does not say which blocks of a sliding window's chunk are missing."""
    assert chosen(8 * KIB, 16, 32, single=False) == 1


def test_the_user_may_fix_the_size() -> None:
    """A multiple of vLLM's blocks, larger or smaller than what would be chosen."""
    assert chosen(8 * KIB, 16, fixed=16) == 1
    assert chosen(2048 * KIB, 16, fixed=512) == 32
    assert chosen(8 * KIB, 16, 16, single=False, fixed=16) == 1


@pytest.mark.parametrize(
    ("tokens", "single", "fixed", "message"),
    [
        ((16,), True, 40, "chunk_tokens: 40 is no multiple of vLLM's block size of 16 tokens: use 32 or 48"),
        ((16,), True, 5, "use 16 or 32, or set vLLM's --block-size"),
        ((16, 32), False, 16, "vLLM's blocks of 16, 32 tokens: remove chunk_tokens"),
        ((16, 16), False, 32, "vLLM's blocks of 16 tokens: remove chunk_tokens"),
    ],
)
def test_a_size_that_cannot_be_had_is_refused(tokens: tuple[int, ...], single: bool, fixed: int, message: str) -> None:
    """With what can."""
    with pytest.raises(ConfigError, match=r"^chunk_tokens: ") as caught:
        chosen(8 * KIB, *tokens, single=single, fixed=fixed)
    assert message in str(caught.value)


# ---- the blocks of a job -----------------------------------------------------------------------------------------


def test_whole_chunks() -> None:
    """In the order of the keys."""
    assert chunks_of(GPULoadStoreSpec([5, 3, 9, 1], [4], [0]), 2) == [Chunk(0, 0, (5, 3)), Chunk(0, 0, (9, 1))]


def test_the_first_chunk_may_begin_in_its_middle() -> None:
    """vLLM has the blocks before it already."""
    assert chunks_of(GPULoadStoreSpec([5, 3, 9], [3], [7]), 4) == [Chunk(0, 3, (5,)), Chunk(0, 0, (3, 9))]


def test_a_piece_within_one_chunk() -> None:
    """Neither its first nor its last block."""
    assert chunks_of(GPULoadStoreSpec([5, 3], [2], [5]), 4) == [Chunk(0, 1, (5, 3))]


def test_groups_one_after_the_other() -> None:
    """A group may have no block in a job."""
    spec = GPULoadStoreSpec([5, 3, 9], [1, 0, 2], [4, 0, 6])
    assert chunks_of(spec, 1) == [Chunk(0, 0, (5,)), Chunk(2, 0, (3,)), Chunk(2, 0, (9,))]


@pytest.mark.parametrize("seed", range(100))
def test_every_block_is_at_its_place(seed: int) -> None:
    """Block number b of a request is block b % n of chunk b // n."""
    source = random.Random(seed)
    per_chunk = source.randint(1, 8)
    groups = [(source.randint(0, 20), source.randint(0, 20)) for _ in range(source.randint(1, 3))]
    sizes, indices = [size for size, _ in groups], [index for _, index in groups]
    ids = list(range(100, 100 + sum(sizes)))
    remaining = iter(chunks_of(GPULoadStoreSpec(ids, sizes, indices), per_chunk))
    number = 100
    for group, (size, index) in enumerate(groups):
        places: list[tuple[int, int]] = []
        while len(places) < size:
            chunk = next(remaining)
            assert chunk.group == group
            assert 0 < len(chunk.blocks) <= per_chunk - chunk.first
            places += [(chunk.first + at, block) for at, block in enumerate(chunk.blocks)]
        assert places == [((index + n) % per_chunk, number + n) for n in range(size)]
        number += size
    assert next(remaining, None) is None
