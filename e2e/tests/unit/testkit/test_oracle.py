"""The rule about texts, on a stand-in for vLLM whose texts tell how it computed them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest

from testkit.http_client import Answer
from testkit.oracle import Reference, Sample, judge, sibling, text_alone

BLOCK = 4
PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class PrefixCache:
    """vLLM's prefix cache with blocks of four tokens; a stand-in, since the rule itself is looked at."""

    def __init__(self) -> None:
        self._blocks: set[tuple[int, ...]] = set()

    def forget(self) -> None:
        self._blocks.clear()

    def generate(self, tokens: Sequence[int]) -> tuple[str, int]:
        """The text tells what was cached, and the tokens that it was computed for."""
        whole = [tuple(tokens[:end]) for end in range(BLOCK, len(tokens), BLOCK)]
        cached = sum(block in self._blocks for block in whole) * BLOCK
        self._blocks.update(whole)
        return f"{cached} of {list(tokens)}", cached


@pytest.mark.parametrize("split", [0, 4, 8])
def test_the_text_is_that_of_the_prompt_behind_the_split(split: int) -> None:
    cache = PrefixCache()
    cache.generate(PROMPT)  # what an earlier question left does not count
    assert text_alone(cache.generate, cache.forget, PROMPT, split) == f"{split} of {PROMPT}"


def test_a_split_that_the_cache_cannot_have_is_no_oracle() -> None:
    cache = PrefixCache()
    with pytest.raises(RuntimeError, match="had 4 tokens of a prompt in its prefix cache, not 6"):
        text_alone(cache.generate, cache.forget, PROMPT, 6)


def test_a_sibling_differs_in_one_token() -> None:
    other = sibling(PROMPT, 4)
    assert len(other) == len(PROMPT)
    assert [place for place, pair in enumerate(zip(PROMPT, other, strict=True)) if pair[0] != pair[1]] == [4]


@pytest.mark.parametrize(("prompt", "split"), [(PROMPT, 0), (PROMPT, 10), ([7, 7, 7], 1)])
def test_a_sibling_that_cannot_be_is_refused(prompt: list[int], split: int) -> None:
    with pytest.raises(ValueError, match="tokens"):
        sibling(prompt, split)


class Alone:
    """Knows the right text of a prompt by its split."""

    def text(self, prompt: str, split: int) -> str:
        return f"{prompt}/{split}"


def sample(prompt: str, text: str, cached: int) -> Sample:
    return Sample(f"step of {prompt}", prompt, Answer(0.1, 0.2, text, 100, cached))


def alone() -> AbstractContextManager[Reference]:
    return nullcontext(Alone())


def never() -> AbstractContextManager[Reference]:
    raise AssertionError("no further engine is needed")


def test_in_float32_a_prompt_has_one_text() -> None:
    right = [sample("p", "text", 0), sample("p", "text", 64), sample("q", "other", 0)]
    assert judge(right, "float32", never).faults == ()
    (fault,) = judge([*right, sample("q", "text", 32)], "float32", never).faults
    assert fault.startswith("step of q: with 32 of 100 tokens cached the text is 'text', not 'other'")


def test_in_bfloat16_the_split_decides() -> None:
    right = [sample("p", "p/0", 0), sample("p", "p/64", 64)]
    told: list[tuple[int, int]] = []
    verdict = judge(right, "bfloat16", alone, lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    assert verdict.faults == ()
    assert "own prefix cache" in verdict.rule
    assert len(judge([*right, sample("p", "p/64", 32), sample("p", "p/64", 0)], "bfloat16", alone).faults) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_text_is_never_right(dtype: str) -> None:
    class Silent:
        def text(self, prompt: str, split: int) -> str:
            return ""

    assert judge([sample("p", "", 0)], dtype, lambda: nullcontext(Silent())).faults  # type: ignore[arg-type]
