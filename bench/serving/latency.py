"""What running requests feel of loads and stores: time between tokens of one streaming request while others come in.

The others come at a steady pace, one after the other. Each is a document of 1024 tokens, all of which some cache holds, and a
chunk of tokens that are its own: what is computed for them is nearly the same everywhere.

- *quiet*: an engine with the connector that does nothing: one document, from the device's own prefix cache, and one token less
  than a whole chunk of its own: there is nothing to ask for, to load or to store.
- *again*: the same once more. What differs from *quiet* is the machine: no figure is better known than this one is near 1.
- *stores*: one token more than a chunk of its own: it is asked for, though hardly waited for, and stored into all tiers.
- *busy*: the same, and documents that the device cannot all hold: each is loaded from the memory tier.
- *alone*: *quiet*, on vLLM without a connector.

All but *alone* run in one process: of five processes of vLLM alone that answered in turn, one was 3 % faster between tokens than
the others and another 3 % slower at first tokens, and stayed so. Streams are short and many: a shared machine was seen to
change its pace by a third within a minute, and streams of 13 s made that look like a cost or a gain of a tenth.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bench.serving.client import Metrics, complete
from bench.serving.engines import SMALL_DEVICE_BLOCKS, Stage
from bench.serving.judge import Figure
from e2e.demo.stage import BLOCK_TOKENS
from testkit.engine import MODEL_NAME

DOCUMENT_TOKENS = 1024
DOCUMENTS = SMALL_DEVICE_BLOCKS * BLOCK_TOKENS // DOCUMENT_TOKENS + 2
"""More than the device holds: in a cycle, the one that comes next was evicted, also if other conditions ran in between."""
POOL = "reborn"
"""The pool's engine that all conditions run on, see `bench.serving.engines`."""
STREAM_PROMPT_TOKENS = 64
STREAM_TOKENS = 64
PACE_S = 0.3
"""Between the beginnings of two others; longer than one of them takes on two cores."""


class Condition(NamedTuple):
    """What the others do, and to which engine."""

    engine: str
    stores: bool
    loads: bool


CONDITIONS = {
    "quiet": Condition(POOL, stores=False, loads=False),
    "again": Condition(POOL, stores=False, loads=False),
    "stores": Condition(POOL, stores=True, loads=False),
    "busy": Condition(POOL, stores=True, loads=True),
    "alone": Condition("none", stores=False, loads=False),
}


@dataclasses.dataclass
class Gaps:
    """Of one condition: lists of seconds, one per repetition."""

    seconds: list[list[float]] = dataclasses.field(default_factory=list)
    others_s: list[list[float]] = dataclasses.field(default_factory=list)
    """To the first token of each of the others."""


class Latency:
    """Runs the conditions in turn.

    Attributes:
        gaps: by condition.
    """

    def __init__(self, stage: Stage, text: Sequence[int], say: Callable[[str], None]) -> None:
        """Args:
        text: tokens of a document, from which all prompts are made.
        """
        self._stage, self._text, self._say = stage, text, say
        self._serial = 0
        self._cycle = itertools.cycle(range(DOCUMENTS))
        self.gaps = {condition: Gaps() for condition in CONDITIONS}

    def prepare(self) -> None:
        """The documents get into the caches."""
        for number in range(DOCUMENTS):
            complete(self._stage.url(POOL), MODEL_NAME, self._other(number, CONDITIONS["busy"]), 1)
        self._say(f"{DOCUMENTS} documents of {DOCUMENT_TOKENS} tokens are in the memory tier")

    def repeat(self) -> None:
        """Every condition once, in random order."""
        for name in random.sample(list(self.gaps), len(self.gaps)):
            condition = CONDITIONS[name]
            documents = self._cycle if condition.loads else itertools.repeat(DOCUMENTS)
            # The document gets onto the device. Several tokens: an engine's counters come out with its next steps.
            complete(self._stage.url(condition.engine), MODEL_NAME, self._other(next(documents), condition), 8)
            self._stage.settle()
            before = self._stage.metrics(condition.engine)
            gaps, others_s = self._stream(condition, documents)
            self._stage.settle()
            chunk = self._stage.chunk_tokens(POOL)
            check_traffic(name, before, self._stage.metrics(condition.engine), len(others_s), chunk)
            self.gaps[name].seconds.append(gaps)
            self.gaps[name].others_s.append(others_s)
            self._say(
                f"between tokens, {name:6} median {statistics.median(gaps) * 1e3:5.1f} ms, "
                f"p99 {p99(gaps) * 1e3:6.1f} ms; "
                f"{len(others_s)} others, first token {statistics.median(others_s) * 1e3:4.0f} ms"
            )

    def _stream(self, condition: Condition, documents: Iterator[int]) -> tuple[list[float], list[float]]:
        """The gaps of one request, and what the others took to their first token, in seconds."""
        url, first, failed = self._stage.url(condition.engine), threading.Event(), threading.Event()
        prompt = self._own(STREAM_PROMPT_TOKENS)
        found: list[float] = []

        def run() -> None:
            try:
                found.extend(complete(url, MODEL_NAME, prompt, STREAM_TOKENS, first.set).gaps_s)
            finally:
                failed.set() if not found else None
                first.set()

        thread = threading.Thread(target=run)
        thread.start()
        first.wait()
        others_s: list[float] = []
        due = time.monotonic()
        while thread.is_alive():
            reply = complete(url, MODEL_NAME, self._other(next(documents), condition), 1)
            if reply.cached_tokens != DOCUMENT_TOKENS:
                raise RuntimeError(f"{condition}: {reply.cached_tokens} tokens of a document came from a cache")
            others_s.append(reply.ttft_s)
            due = max(due + PACE_S, time.monotonic())
            thread.join(due - time.monotonic())
        if failed.is_set():
            raise RuntimeError(f"{condition}: the streaming request failed")
        return found, others_s

    def _other(self, document: int, condition: Condition) -> list[int]:
        own = self._stage.chunk_tokens(POOL) + (1 if condition.stores else -1)
        return [2000 + document, *self._text[: DOCUMENT_TOKENS - 1], *self._own(own)]

    def _own(self, count: int) -> list[int]:
        """Tokens that no other request has in this place."""
        self._serial += 1
        return [3000 + self._serial, *self._text[self._serial : self._serial + count - 1]]


def check_traffic(name: str, before: Metrics, after: Metrics, others: int, chunk: int) -> None:
    """The condition was what its name says. A tenth may be missing: counters come out with an engine's next steps.

    Raises:
        RuntimeError: loads or stores where none should be, or too few where all should be.
    """
    condition = CONDITIONS[name]
    of_stream = (STREAM_PROMPT_TOKENS + STREAM_TOKENS) // chunk
    loads = others * DOCUMENT_TOKENS // chunk if condition.loads else 0
    stores = others if condition.stores else 0
    for what, key, least, most in (
        ("loaded from memory", ("kvpool:loaded_chunks_total", "memory"), 0.9 * loads, loads),
        ("stored", ("kvpool:stored_chunks_total", ""), 0.9 * stores, stores + of_stream),
    ):
        found = after.get(key, 0.0) - before.get(key, 0.0)
        if not least <= found <= most:
            raise RuntimeError(f"{name}: {found:.0f} chunks were {what}, expected {least:.0f} to {most:.0f}")


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def typical(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]]) -> Figure | None:
    """Median over median, repetition by repetition; None without any."""
    each = [statistics.median(a) / statistics.median(b) for a, b in zip(above, below, strict=True)]
    return Figure.of(each) if each else None


def rare(above: Gaps, below: Gaps) -> Figure | None:
    """The 99th percentile of all gaps together, of which one repetition has too few, with the spread over repetitions; None
    without any."""
    each = [p99(a) / p99(b) for a, b in zip(above.seconds, below.seconds, strict=True)]
    if not each:
        return None
    together = [[gap for some in gaps.seconds for gap in some] for gaps in (above, below)]
    return Figure.of(each, p99(together[0]) / p99(together[1]))
