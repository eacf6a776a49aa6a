"""What lies between a request and whole chunks: ragged prompts, hits that begin inside a chunk, prefill in pieces.
Byte for byte, and no reference left.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connector.tests.engine import models
from connector.tests.engine.harness import TINY, Engine, running, tokens
from kvpool_connector.transfer import Kind

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Full attention; a chunk of 128 tokens takes 256 KiB."""
    return models.save(models.llama, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def chunked(llama: str) -> Iterator[Engine]:
    """Chunks of four blocks, and steps of 512 tokens, so that long prompts are computed in pieces."""
    kvpool = {"tiers": {"cpu": {"size": "64Mi"}}, "chunk_tokens": 128}
    with running(llama, kvpool, **TINY, max_num_batched_tokens=512, max_model_len=8192) as engine:
        yield engine
        engine.assert_nothing_is_left()


def test_a_ragged_prompt_hits_in_whole_chunks(chunked: Engine) -> None:
    """Of 300 tokens, 256 are two chunks; of 9 blocks, 8 are loaded."""
    assert_same_bytes(chunked, 1, 300, hit=256)


def test_a_prompt_of_whole_chunks(chunked: Engine) -> None:
    """All is loaded; vLLM computes the last token again for its logits, into the last block."""
    chunked.forget(tiers=True)
    text, _ = chunked.generate(tokens(2, 512, models.VOCABULARY))
    chunked.settle()
    computed = chunked.snapshot(Kind.STORE)
    chunked.forget()
    chunked.overwrite()
    again, cached = chunked.generate(tokens(2, 512, models.VOCABULARY))
    loaded = chunked.snapshot(Kind.LOAD)
    assert (cached, len(loaded)) == (512, 16)
    last = chunked.loads()[0].keys[-1]
    assert {key for key, data in loaded.items() if data != computed[key]} <= {(last, 3)}
    assert again == text


def test_a_long_prompt_that_is_computed_in_pieces(chunked: Engine) -> None:
    """6100 tokens in steps of 512: 47 chunks."""
    assert_same_bytes(chunked, 3, 6100, hit=47 * 128)


def test_a_hit_that_begins_inside_a_chunk(chunked: Engine) -> None:
    """vLLM holds three of the first chunk's four blocks: only the fourth is taken from the chunk."""
    chunked.forget(tiers=True)
    prompt = tokens(4, 700, models.VOCABULARY)
    text, _ = chunked.generate(prompt)
    chunked.settle()
    computed = chunked.snapshot(Kind.STORE)
    chunked.forget()
    chunked.overwrite()
    head = tokens(4, 100, models.VOCABULARY)
    assert head["prompt_token_ids"] == prompt["prompt_token_ids"][:100]
    assert chunked.generate(head)[1] == 0
    again, cached = chunked.generate(prompt)
    assert cached == 640
    (load,) = chunked.loads()
    first = chunked.chunks(Kind.LOAD)[load.keys[0]]
    assert (first.first, len(first.blocks)) == (3, 1)
    loaded = chunked.snapshot(Kind.LOAD)
    assert len(loaded) == 20 - 3
    assert not [key for key, data in loaded.items() if data != computed[key]]
    assert again == text


def assert_same_bytes(engine: Engine, number: int, count: int, *, hit: int) -> None:
    """Cold, overwritten, warm."""
    engine.forget(tiers=True)
    prompt = tokens(number, count, models.VOCABULARY)
    text, cached = engine.generate(prompt, tokens=16)
    assert cached == 0
    engine.settle()
    computed = engine.snapshot(Kind.STORE)
    engine.forget()
    engine.overwrite()
    again, cached = engine.generate(prompt, tokens=16)
    loaded = engine.snapshot(Kind.LOAD)
    assert (cached, len(loaded)) == (hit, hit // 32)
    assert not [key for key, data in loaded.items() if data != computed[key]]
    assert again == text
