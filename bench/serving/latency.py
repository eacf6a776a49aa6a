"""What running requests feel of loads and stores: time between tokens of one streaming request while others come in.

The others come at a steady pace, one after the other. Each is a document of 1024 tokens, all of which some cache holds, and 33
tokens that are its own: what is computed for them is the same everywhere, only where the documents come from differs.

- *quiet*: vLLM alone; one document, from the device's own prefix cache.
- *again*: the same once more. What differs from *quiet* is the machine: no figure is better known than this one is near 1.
- *resident*: the same on the engine with the connector: no loads; the 33 tokens are stored.
- *busy*: documents that the device cannot all hold: each is loaded from the memory tier, and the 33 tokens are stored.

Streams are short and many: a shared machine was seen to change its pace by a third within a minute, and streams of 13 s made that
look like a cost or a gain of a tenth.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from bench.serving.client import Metrics, complete
from bench.serving.engines import CHUNK_TOKENS, SMALL_DEVICE_BLOCKS, Stage
from bench.serving.judge import Figure
from e2e.demo.stage import BLOCK_TOKENS
from testkit.engine import MODEL_NAME

DOCUMENT_TOKENS = 1024
DOCUMENTS = SMALL_DEVICE_BLOCKS * BLOCK_TOKENS // DOCUMENT_TOKENS + 2
"""More than the device holds: in a cycle, the one that comes next was evicted, also if other conditions ran in between."""
OWN_TOKENS = 33
STREAM_TOKENS = 64
PACE_S = 0.3
"""Between the beginnings of two others; longer than one of them takes on two cores."""
ENGINE_OF = {"quiet": "none", "again": "none", "resident": "reborn", "busy": "reborn"}


@dataclasses.dataclass
class Gaps:
    """Of one condition: a list of seconds per repetition, and how many others there were in each."""

    seconds: list[list[float]] = dataclasses.field(default_factory=list)
    others: list[int] = dataclasses.field(default_factory=list)


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
        self.gaps = {condition: Gaps() for condition in ENGINE_OF}

    def prepare(self) -> None:
        """The documents get into the caches."""
        for number in range(DOCUMENTS):
            complete(self._stage.url("reborn"), MODEL_NAME, self._other(number), 1)
        self._say(f"{DOCUMENTS} documents of {DOCUMENT_TOKENS} tokens are in the memory tier")

    def repeat(self) -> None:
        """Every condition once, in random order."""
        for condition in random.sample(list(self.gaps), len(self.gaps)):
            engine = ENGINE_OF[condition]
            documents = self._cycle if condition == "busy" else itertools.repeat(DOCUMENTS)
            # The document gets onto the device. Several tokens: an engine's counters come out with its next steps.
            complete(self._stage.url(engine), MODEL_NAME, self._other(next(documents)), 8)
            self._stage.settle()
            before = self._stage.metrics(engine)
            gaps, others = self._stream(engine, documents)
            check_traffic(condition, before, self._stage.metrics(engine), others)
            self.gaps[condition].seconds.append(gaps)
            self.gaps[condition].others.append(others)
            self._say(
                f"between tokens, {condition:8} median {statistics.median(gaps) * 1e3:5.1f} ms, "
                f"p99 {p99(gaps) * 1e3:6.1f} ms, {others} others"
            )

    def _stream(self, engine: str, documents: Iterator[int]) -> tuple[list[float], int]:
        """The gaps of one request, and how many others came."""
        url, first, failed = self._stage.url(engine), threading.Event(), threading.Event()
        prompt = self._own(64)
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
        others, due = 0, time.monotonic()
        while thread.is_alive():
            reply = complete(url, MODEL_NAME, self._other(next(documents)), 1)
            if reply.cached_tokens != DOCUMENT_TOKENS:
                raise RuntimeError(f"{engine}: {reply.cached_tokens} tokens of a document came from a cache")
            others += 1
            due = max(due + PACE_S, time.monotonic())
            thread.join(due - time.monotonic())
        if failed.is_set():
            raise RuntimeError(f"{engine}: the streaming request failed")
        return found, others

    def _other(self, document: int) -> list[int]:
        return [2000 + document, *self._text[: DOCUMENT_TOKENS - 1], *self._own(OWN_TOKENS)]

    def _own(self, count: int) -> list[int]:
        """Tokens that no other request has in this place."""
        self._serial += 1
        return [3000 + self._serial, *self._text[self._serial : self._serial + count - 1]]


def check_traffic(condition: str, before: Metrics, after: Metrics, others: int) -> None:
    """Raises:
    RuntimeError: loads where none should be, or too few where all should be.
    """
    key = ("kvpool:loaded_chunks_total", "memory")
    loaded = after.get(key, 0.0) - before.get(key, 0.0)
    expected = others * DOCUMENT_TOKENS // CHUNK_TOKENS["pool"] if condition == "busy" else 0
    if loaded > expected or loaded < 0.9 * expected:
        raise RuntimeError(f"{condition}: {loaded:.0f} chunks were loaded from memory, expected {expected}")


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def typical(above: Gaps, below: Gaps) -> Figure | None:
    """Median gap over median gap, repetition by repetition; None without any."""
    each = [statistics.median(a) / statistics.median(b) for a, b in zip(above.seconds, below.seconds, strict=True)]
    return Figure.of(each) if each else None


def rare(above: Gaps, below: Gaps) -> Figure | None:
    """The 99th percentile of all gaps together, of which one repetition has too few, with the spread over repetitions; None
    without any."""
    each = [p99(a) / p99(b) for a, b in zip(above.seconds, below.seconds, strict=True)]
    if not each:
        return None
    together = [[gap for some in gaps.seconds for gap in some] for gaps in (above, below)]
    return Figure.of(each, p99(together[0]) / p99(together[1]))
