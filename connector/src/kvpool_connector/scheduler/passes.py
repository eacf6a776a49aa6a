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
from collections import deque

MIN_PREFILL_TOKENS = 128
"""A pass of fewer tokens decodes rather than prefills."""
KEPT_PASSES = 16
"""Passes of each kind of which the median is taken: one pass that was slowed down does not count."""
MOST_RUNNING = 64
"""Passes that may run at once. An engine of which no rank reports any end, because each runs without
the cache, must not gather them for ever."""
_LEAST_SHARE = 0.5
"""A prefill pass spends at least this share of its time on its tokens, whatever a step costs."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Pass:
    number: int
    tokens: int
    launched: float


class Passes:
    """The rates of this engine. One thread, that of the scheduler; times are in seconds."""

    def __init__(self) -> None:
        self._running: deque[_Pass] = deque(maxlen=MOST_RUNNING)
        self._last_end = float("-inf")
        self._prefills: deque[tuple[int, float]] = deque(maxlen=KEPT_PASSES)
        self._decodes: deque[float] = deque(maxlen=KEPT_PASSES)
        self._last_number = 0
        self.step_s: float | None = None
        """How long a pass takes that only decodes; None before the first one."""
        self.prefill_rate: float | None = None
        """How many tokens a second a pass computes; None before the first prefill. What every pass
        costs, as one that only decodes shows it, is not charged to the tokens."""

    def launch(self, tokens: int, now: float) -> int:
        """Note that a pass of so many tokens is launched.

        Returns:
            the number under which its end is reported; 0 for a step without tokens, which runs no
            pass and whose end is not reported.
        """
        if not tokens:
            return 0
        self._last_number += 1
        self._running.append(_Pass(self._last_number, tokens, now))
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
            self._note(only.tokens, max(seconds, 1e-6))
        self._last_end = now

    def _note(self, tokens: int, seconds: float) -> None:
        if tokens < MIN_PREFILL_TOKENS:
            self._decodes.append(seconds)
            self.step_s = statistics.median(self._decodes)
        else:
            self._prefills.append((tokens, seconds))
        if self._prefills:
            step_s = self.step_s or 0.0
            self.prefill_rate = statistics.median(
                tokens / max(seconds - step_s, _LEAST_SHARE * seconds) for tokens, seconds in self._prefills
            )
