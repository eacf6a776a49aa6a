"""How fast the engine computes, measured from the launches and the ends of its forward passes.

vLLM schedules a pass before the last one has ended wherever scheduling is asynchronous, as it is on
GPUs by default. The time between two calls of the scheduler says nothing about a pass there. A pass
runs from its launch, or from the end of the pass before it if that is later, until its output is
back in the scheduler. This holds for synchronous scheduling, for a queue of passes and for pipeline
stages, and leaves out the time in which the engine was idle.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict, deque

MIN_PREFILL_TOKENS = 128
"""A pass of fewer prompt tokens decodes rather than prefills."""
KEPT_PASSES = 16
"""Passes of each kind of which the median is taken: one pass that was slowed down does not count."""
MOST_RUNNING = 64
"""Passes that may run at once. An engine of which no rank reports any end, because each runs without
the cache, must not gather them for ever."""
_LEAST_SHARE = 0.5
"""A prefill pass spends at least this share of its time on its tokens, whatever a step costs. One
that seems to spend less is too short to tell: it pushes out none that does."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Pass:
    number: int
    prefill_tokens: int
    decode_tokens: int
    launched: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Prefill:
    tokens: int
    decode_tokens: int
    seconds: float


class Passes:
    """The rates of this engine. One thread, that of the scheduler; times are in seconds."""

    def __init__(self) -> None:
        self._running: deque[_Pass] = deque(maxlen=MOST_RUNNING)
        self._last_end = float("-inf")
        self._prefills: deque[_Prefill] = deque(maxlen=KEPT_PASSES)
        self._short_prefills: deque[_Prefill] = deque(maxlen=KEPT_PASSES)
        self._decodes: deque[float] = deque(maxlen=KEPT_PASSES)
        self._decodes_of_size: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT_PASSES))
        self._step_of_size: dict[int, float] = {}
        self._last_number = 0
        self.step_s: float | None = None
        """How long a pass takes that only decodes; None before the first one."""
        self.prefill_rate: float | None = None
        """How many prompt tokens a second a pass computes; None before the first prefill. What a
        pass costs that only decodes as much is not charged to them. The largest passes say it: of
        those with few tokens, the slow ones would seem to tell as much."""

    def launch(self, prefill_tokens: int, decode_tokens: int, now: float) -> int:
        """Note that a pass of so many tokens is launched.

        Returns:
            the number under which its end is reported; 0 for a step without tokens, which runs no
            pass and whose end is not reported.
        """
        if not prefill_tokens + decode_tokens:
            return 0
        self._last_number += 1
        self._running.append(_Pass(self._last_number, prefill_tokens, decode_tokens, now))
        return self._last_number

    def end(self, number: int, now: float) -> None:
        """Note that the output of a pass is back.

        A pass whose own end was never reported ended by then, too; how long each of them took is
        not known, so neither counts.
        """
        ended: list[_Pass] = []
        while self._running and self._running[0].number <= number:
            ended.append(self._running.popleft())
        if len(ended) == 1:
            (only,) = ended
            seconds = now - max(only.launched, self._last_end)
            self._note(only, max(seconds, 1e-6))
        self._last_end = now

    def _note(self, ended: _Pass, seconds: float) -> None:
        if ended.prefill_tokens < MIN_PREFILL_TOKENS:
            self._decodes.append(seconds)
            self.step_s = statistics.median(self._decodes)
            size = _size(ended.prefill_tokens + ended.decode_tokens)
            self._decodes_of_size[size].append(seconds)
            self._step_of_size[size] = statistics.median(self._decodes_of_size[size])
        else:
            prefill = _Prefill(ended.prefill_tokens, ended.decode_tokens, seconds)
            (self._prefills if self._tells(prefill) else self._short_prefills).append(prefill)
        kept = [*self._prefills, *self._short_prefills]
        if kept:
            largest = max(prefill.tokens for prefill in kept)
            self.prefill_rate = statistics.median(
                self._rate(prefill) for prefill in kept if prefill.tokens >= largest / 2
            )

    def _step(self, decode_tokens: int) -> float:
        """Return what a pass costs that decodes so many tokens: no more than one of more tokens, and
        as much as the largest one where none was larger. A first pass that was slow is outlived by
        those that follow. 0 before the first one."""
        steps = self._step_of_size
        larger = [step for size, step in steps.items() if size >= _size(decode_tokens)]
        return min(larger) if larger else steps[max(steps)] if steps else 0.0

    def _tells(self, prefill: _Prefill) -> bool:
        """Return whether a pass took long enough, beside its step, to say what its tokens cost."""
        return prefill.seconds - self._step(prefill.decode_tokens) >= _LEAST_SHARE * prefill.seconds

    def _rate(self, prefill: _Prefill) -> float:
        beyond_s = prefill.seconds - self._step(prefill.decode_tokens)
        return prefill.tokens / max(beyond_s, _LEAST_SHARE * prefill.seconds)


def _size(tokens: int) -> int:
    """Return the class of passes that cost about the same: up to twice as many tokens."""
    return tokens.bit_length()
