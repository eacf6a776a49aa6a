"""Times to the first token: cold, from memory, from disk after a restart, from Redis in a fresh process. Every answer must have
come from where it should have, with the text that computing gave; anything else is an error, not a figure."""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from bench.serving.client import Metrics, complete
from bench.serving.engines import Stage
from testkit.engine import MODEL_NAME
from testkit.host import chosen_dtype, one_arithmetic
from testkit.http_client import ask, reset_own_cache
from testkit.servers import wait_until

ANSWER_TOKENS = 8
"""Long enough to see that a text is the same."""
TIERS = ("memory", "disk", "remote")
_HITS = ("vllm:external_prefix_cache_hits_total", "")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text, asked as a chat, or token ids, asked as they are."""

    name: str
    content: str | Sequence[int]


class Rounds:
    """Plays prompts on the engines of a stage and keeps the seconds.

    Attributes:
        seconds: by what was measured ("cold none", "memory pool", ...), each with the prompt's name.
    """

    def __init__(self, stage: Stage, say: Callable[[str], None]) -> None:
        self._stage, self._say = stage, say
        self.seconds: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
        self._texts: dict[tuple[str, int], str] = {}

    def cold_and_warm(self, prompt: Prompt, engines: Sequence[str]) -> None:
        """Computed by each engine, in random order; then again from what the caching ones kept in host memory."""
        for engine in random.sample(engines, len(engines)):
            parts = self._stage.parts()
            tokens = self._ask(prompt, engine, None)
            if engine == "pool":
                whole = (tokens - 1) // self._stage.chunk_tokens(engine)
                wait_until("its chunks are in the store", lambda: self._stage.parts() >= parts + whole)  # noqa: B023
        caching = [engine for engine in engines if engine != "none"]
        for engine in random.sample(caching, len(caching)):
            self._stage.settle()
            reset_own_cache(self._stage.url(engine))
            self._ask(prompt, engine, "memory")

    def from_tier(self, prompt: Prompt, engine: str, tier: str, note: str = "") -> None:
        """By an engine that has not seen this prompt in its life as a process. A note is part of what was measured."""
        self._ask(prompt, engine, tier, note)

    def _ask(self, prompt: Prompt, engine: str, tier: str | None, note: str = "") -> int:
        """The prompt's length in tokens.

        Raises:
            RuntimeError: the tokens came from elsewhere than ``tier`` (None: computed), or the text differs.
        """
        stage = self._stage
        stage.settle()
        before, url = stage.metrics(engine), stage.url(engine)
        answer = (
            ask(url, MODEL_NAME, prompt.content, max_tokens=ANSWER_TOKENS)
            if isinstance(prompt.content, str)
            else complete(url, MODEL_NAME, prompt.content, ANSWER_TOKENS)
        )
        chunk = stage.chunk_tokens(engine)
        expected = 0 if tier is None else _whole(answer.prompt_tokens, chunk)
        what = f"{prompt.name} on {engine}"
        if answer.cached_tokens != expected:
            raise RuntimeError(f"{what}: {answer.cached_tokens} tokens came from a cache, expected {expected}")
        if engine != "none":
            chunks = 0 if engine == "lmcache" else expected // chunk
            wait_until(f"{what}: counted", lambda: _counted(before, stage.metrics(engine), expected, chunks), 5)
            source = "" if engine == "lmcache" else tier
            check_source(what, source, before, stage.metrics(engine), expected, chunks)
        # Where the arithmetic makes several texts of one prompt, only those behind one split are comparable (docs/texts.md).
        split = 0 if one_arithmetic(chosen_dtype()) else expected
        right = self._texts.setdefault((prompt.name, split), answer.text)
        if right != answer.text:
            raise RuntimeError(f"{what}: another text: {answer.text!r}, not {right!r}")
        key = f"{tier or 'cold'} {engine}{note}"
        self.seconds[key].append((prompt.name, answer.ttft_s))
        self._say(
            f"{prompt.name:12} {key:24} {answer.ttft_s:7.3f} s, {expected} of {answer.prompt_tokens} tokens cached"
        )
        return answer.prompt_tokens


def check_source(what: str, tier: str | None, before: Metrics, after: Metrics, tokens: int, chunks: int) -> None:
    """Check that ``tokens`` came through the connector, and that the pool loaded ``chunks`` for them from one tier.

    Raises:
    RuntimeError: not all ``tokens`` came through the connector, or the pool loaded from another tier than ``tier`` (None: none
        at all; "": not our connector).
    """
    through = _rise(before, after, _HITS)
    if through != tokens:
        raise RuntimeError(f"{what}: {through:.0f} tokens came through the connector, not {tokens}")
    loaded = {each: _rise(before, after, ("kvpool:loaded_chunks_total", each)) for each in TIERS}
    expected = 0 if tier in (None, "") else chunks
    if any(number != (expected if each == tier else 0) for each, number in loaded.items()):
        raise RuntimeError(f"{what}: chunks loaded by tier: {loaded}, expected {expected} from {tier or 'none'}")


def _counted(before: Metrics, after: Metrics, tokens: int, chunks: int) -> bool:
    """Whether the front end knows of everything: its answer is sent before its counters are."""
    loaded = sum(_rise(before, after, ("kvpool:loaded_chunks_total", tier)) for tier in TIERS)
    return _rise(before, after, _HITS) >= tokens and loaded >= chunks


def _whole(prompt_tokens: int, chunk_tokens: int) -> int:
    """Tokens in whole chunks; the last token is always computed."""
    return (prompt_tokens - 1) // chunk_tokens * chunk_tokens


def _rise(before: Metrics, after: Metrics, key: tuple[str, str]) -> float:
    return after.get(key, 0.0) - before.get(key, 0.0)
