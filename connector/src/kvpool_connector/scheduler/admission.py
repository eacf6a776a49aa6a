"""Load or compute? A hit in a lower tier is worth loading only where loading is faster.

Two rates are measured while the engine works: how fast each lower tier delivers (timed reads of the ranks) and how fast the
engine prefills (:mod:`kvpool_connector.scheduler.passes`). Both sides of the comparison are seconds. A remote store that is
slower than computing made time to first token 2.6 times worse in LMCache (issue 914 there): a hit alone is no reason to load.

A tier is closed and opened by the two rates alone, never by what is queued. Whether one request is loaded or computed depends on
both queues as well: the loads that were begun before it, and the prompt tokens that running requests have still to compute.

Memory is not asked about: a copy at memory speed beats any forward pass.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from kvpool_connector.log import get_logger
from kvpool_connector.scheduler.passes import Passes
from kvpool_connector.transfer import Tier

logger = get_logger(__name__)

CLOSE_ABOVE, OPEN_BELOW = 0.9, 0.7
"""Loading time ÷ computing time. The gap keeps a tier at the border from switching with every request."""
PROBE_EVERY_S, PROBE_SHARE, MOST_PROBE_PAUSE_S = 1.0, 0.1, 60.0
"""A tier that is not used for loads is measured by reads of single parts that no request waits for: at most so often, and
at most for so much of the time, since on a slow link a probe itself takes long; but at least once in this pause."""
LEAST_BUDGET_S, BUDGET_SLACK = 0.05, 1.5
"""The least time that a fetch gets, and how much longer than computing it may take before it is given up: estimates that are
a little off must not cut a load that nearly arrived."""
UNKNOWN_BUDGET_S = 2.0
"""What a fetch may take as long as nothing was computed that it could be compared with."""
FIRST_PROBE_S = 0.1
"""So long a request waits for the very first measurement of a tier. 1 MiB in 0.1 s are 10 MB/s."""
SHARE_FOR_LOOKUP, UNKNOWN_PATIENCE_S, MOST_PATIENCE_S = 0.05, 0.5, 1.0
"""Of what computing a prompt would take: so long waiting for the store's answer is worth while. And as long as nothing was
computed: on a busy node of two cores 0.2 s lost whole documents, each of which took seconds to compute (measured)."""
STEPS_OF_A_HIT = 2
"""What a hit in the store costs a request at least while others run: a step until the answer is known, and one for the load. (On
the CPU a second one: vLLM 0.32 begins a load when the pass was launched, which there means computed.)"""
_WEIGHT = 0.5


@dataclasses.dataclass(slots=True)
class _Line:
    """What is known about one tier."""

    rate: float | None = None
    """Bytes per second and rank."""
    open: bool = True
    probed_at: float = float("-inf")
    first_probe_ends: float | None = None


class Admission:
    """Estimates and the decision that follows. One thread; the clock is only read for probes."""

    def __init__(
        self, chunk_bytes: int, chunk_tokens: int, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        chunk_bytes: one rank's part of a chunk.
        chunk_tokens: tokens that computing a chunk takes.
        enabled: False: every hit is loaded; rates are still measured.
        """
        self._chunk_bytes, self._chunk_tokens = chunk_bytes, chunk_tokens
        self._enabled, self._clock = enabled, clock
        self._lines = {Tier.DISK: _Line(), Tier.REMOTE: _Line()}
        self._passes = Passes()

    # ---- measurements --------------------------------------------------------------------------------------

    def read(self, tier: Tier, nbytes: int, seconds: float, *, at_most: bool = False) -> None:
        """Note that a rank read so much from a tier in such a time.

        Args:
            at_most: the read was given up, so that the tier is at most that fast. This says nothing
                about a tier that is known to be slower.
        """
        line = self._lines[tier]
        rate = nbytes / max(seconds, 1e-6)
        if at_most and line.rate is not None and rate >= line.rate:
            return
        line.rate = rate if line.rate is None else line.rate + _WEIGHT * (rate - line.rate)
        self._decide(tier)

    def pass_launched(self, tokens: int) -> int:
        """See :meth:`Passes.launch`."""
        return self._passes.launch(tokens, self._clock())

    def pass_ended(self, number: int) -> None:
        """See :meth:`Passes.end`."""
        self._passes.end(number, self._clock())
        for tier in self._lines:
            self._decide(tier)

    # ---- decisions -----------------------------------------------------------------------------------------

    def allows(self, tier: Tier) -> bool:
        """Return whether hits in this tier are loaded at all."""
        return not self._enabled or self._lines[tier].open

    def pays(self, tier: Tier, chunks: int, queued: int, prefill_tokens: int) -> bool:
        """Return whether loading a request's chunks from a tier ends before computing them would.

        Args:
            queued: chunks that the tier has still to deliver for earlier loads.
            prefill_tokens: prompt tokens that the engine computes before those of this request.
        """
        load_s = self.load_s(tier, queued + chunks)
        compute_s = self.compute_s(chunks, prefill_tokens)
        if not self._enabled or not queued or load_s is None or compute_s is None:
            return True
        return load_s < CLOSE_ABOVE * compute_s

    def unmeasured(self, tier: Tier) -> bool:
        """True while a request should wait for the first measurement of a tier; bounded by `FIRST_PROBE_S`."""
        line = self._lines[tier]
        if line.rate is not None or not self._enabled:
            return False
        now = self._clock()
        if line.first_probe_ends is None:
            line.first_probe_ends = now + FIRST_PROBE_S
            return True
        if now < line.first_probe_ends:
            return True
        self.read(tier, self._chunk_bytes, FIRST_PROBE_S)  # at best so fast; the probe's end will tell
        return False

    def first_probe_over(self) -> bool:
        """True once for each tier whose first measurement did not come in time: requests wait no longer."""
        if all(line.rate is not None or line.first_probe_ends is None for line in self._lines.values()):
            return False
        before = [line.rate for line in self._lines.values()]
        for tier, line in self._lines.items():
            if line.first_probe_ends is not None:
                self.unmeasured(tier)
        return before != [line.rate for line in self._lines.values()]

    def wants_probe(self, tier: Tier) -> bool:
        """Whether to measure this tier now, see `PROBE_EVERY_S`."""
        line, now = self._lines[tier], self._clock()
        pause_s = max(PROBE_EVERY_S, min((self.load_s(tier, 1) or 0.0) / PROBE_SHARE, MOST_PROBE_PAUSE_S))
        if now - line.probed_at < pause_s:
            return False
        line.probed_at = now
        return True

    def compute_s(self, chunks: int, prefill_tokens: int = 0) -> float | None:
        """Return how long computing so many chunks takes, behind so many other tokens; None: not measured yet."""
        rate = self._passes.prefill_rate
        return None if rate is None else (chunks * self._chunk_tokens + prefill_tokens) / rate

    def load_s(self, tier: Tier, chunks: int) -> float | None:
        """What reading so many chunks would take; None: not measured yet."""
        rate = self._lines[tier].rate
        return None if not rate else chunks * self._chunk_bytes / rate

    def fetch_budget_s(self, chunks: int, most_s: float, prefill_tokens: int = 0) -> float:
        """Return how long a fetch may take before computing would have been the better choice.

        Args:
            most_s: the configured limit.
            prefill_tokens: as for :meth:`pays`.
        """
        if not self._enabled:
            return most_s
        compute_s = self.compute_s(chunks, prefill_tokens)
        if compute_s is None:
            return min(most_s, UNKNOWN_BUDGET_S)
        return min(most_s, max(BUDGET_SLACK * compute_s, LEAST_BUDGET_S))

    def lookup_patience_s(self, chunks: int, least_s: float) -> float:
        """How long to wait for the store's answer about so many chunks."""
        compute_s = self.compute_s(chunks)
        worth_s = UNKNOWN_PATIENCE_S if compute_s is None else SHARE_FOR_LOOKUP * compute_s
        return max(least_s, min(worth_s, MOST_PATIENCE_S))

    def worth_asking(self, chunks: int) -> bool:
        """Whether a request shall wait for the store's answer about so many chunks while others run. The end of a prompt that is
        otherwise cached is computed sooner than it is asked for, and loaded."""
        compute_s, step_s = self.compute_s(chunks), self._passes.step_s
        if not self._enabled or compute_s is None or step_s is None:
            return True
        return compute_s > STEPS_OF_A_HIT * step_s

    def figures(self) -> dict[tuple[str, Tier | None], float]:
        """Inputs and outcome, for metrics: ("prefill_tokens_per_second", None), ("read_bytes_per_second", tier), ..."""
        measured: dict[tuple[str, Tier | None], float | None] = {
            ("prefill_tokens_per_second", None): self._passes.prefill_rate,
            ("decode_step_seconds", None): self._passes.step_s,
            ("chunk_compute_seconds", None): self.compute_s(1),
        }
        for tier, line in self._lines.items():
            measured["read_bytes_per_second", tier] = line.rate
            measured["chunk_load_seconds", tier] = self.load_s(tier, 1)
            measured["admitted", tier] = None if line.rate is None else float(self.allows(tier))
        return {name: figure for name, figure in measured.items() if figure is not None}

    def _decide(self, tier: Tier) -> None:
        line, load_s, compute_s = self._lines[tier], self.load_s(tier, 1), self.compute_s(1)
        if load_s is None or compute_s is None:
            return
        ratio = load_s / compute_s
        was_open, line.open = line.open, ratio < (CLOSE_ABOVE if line.open else OPEN_BELOW)
        if was_open != line.open and self._enabled:
            logger.warning(
                "%s tier: reading a chunk takes %.1f ms, computing it %.1f ms: its hits are %s from now on",
                tier.value, load_s * 1e3, compute_s * 1e3, "loaded" if line.open else "computed",
            )  # fmt: skip
