"""Load or compute? A hit in a lower tier is worth loading only where loading is faster.

Two rates are measured while the engine works: how fast each lower tier delivers (timed reads of the ranks) and how fast the
engine prefills (tokens per step). Both sides of the comparison are seconds per chunk. A remote store that is slower than
computing made time to first token 2.6 times worse in LMCache (issue 914 there): a hit alone is no reason to load.

Memory is not asked about: a copy at memory speed beats any forward pass.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from kvpool_connector.log import get_logger
from kvpool_connector.transfer import Tier

logger = get_logger(__name__)

CLOSE_ABOVE, OPEN_BELOW = 0.9, 0.7
"""Loading time ÷ computing time. The gap keeps a tier at the border from switching with every request."""
PROBE_EVERY_S, PROBE_SHARE = 1.0, 0.1
"""A tier that is not used for loads is measured by reads of single parts that no request waits for: at most so often, and
at most for so much of the time, since on a slow link a probe itself takes long."""
UNKNOWN_BUDGET_S = 2.0
"""What a fetch may take as long as nothing was computed that it could be compared with."""
FIRST_PROBE_S = 0.1
"""So long a request waits for the very first measurement of a tier. 1 MiB in 0.1 s are 10 MB/s."""
MIN_STEP_TOKENS = 128
"""Smaller steps decode rather than prefill."""
SHARE_FOR_LOOKUP, UNKNOWN_PATIENCE_S, MOST_PATIENCE_S = 0.05, 0.5, 1.0
"""Of what computing a prompt would take: so long waiting for the store's answer is worth while. And as long as nothing was
computed: on a busy node of two cores 0.2 s lost whole documents, each of which took seconds to compute (measured)."""
STEPS_OF_A_HIT = 2
"""What a hit in the store costs a request at least while others run: a step until the answer is known, and one for the load. (On
the CPU a second one: vLLM 0.32 begins a load when the pass was launched, which there means computed.)"""
MOST_STEP_S = 1.0
"""What lies longer between two steps was a pause."""
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
        self.prefill_rate: float | None = None
        """Tokens per second, the best of late."""
        self.decode_step_s: float | None = None
        """What a step takes that only decodes, the best of late."""

    # ---- measurements --------------------------------------------------------------------------------------

    def read(self, tier: Tier, nbytes: int, seconds: float) -> None:
        """A rank read so much from a tier in such a time."""
        line = self._lines[tier]
        rate = nbytes / max(seconds, 1e-6)
        line.rate = rate if line.rate is None else line.rate + _WEIGHT * (rate - line.rate)
        self._decide(tier)

    def computed(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long. Waiting and decoding in between only make it look slower, hence the
        best of late counts, not the mean."""
        if 0 < tokens < MIN_STEP_TOKENS and 0 < seconds < MOST_STEP_S:
            known = self.decode_step_s
            self.decode_step_s = seconds if known is None or seconds < known else known + 0.05 * (seconds - known)
        if tokens < MIN_STEP_TOKENS or seconds <= 0:
            return
        rate = tokens / seconds
        known = self.prefill_rate
        self.prefill_rate = rate if known is None or rate > known else known + 0.05 * (rate - known)
        for tier in self._lines:
            self._decide(tier)

    # ---- decisions -----------------------------------------------------------------------------------------

    def allows(self, tier: Tier) -> bool:
        """Whether a hit in this tier is loaded."""
        return not self._enabled or self._lines[tier].open

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
        pause_s = max(PROBE_EVERY_S, (self.load_s(tier, 1) or 0.0) / PROBE_SHARE)
        if now - line.probed_at < pause_s:
            return False
        line.probed_at = now
        return True

    def compute_s(self, chunks: int) -> float | None:
        """What computing so many chunks would take; None: not measured yet."""
        return None if not self.prefill_rate else chunks * self._chunk_tokens / self.prefill_rate

    def load_s(self, tier: Tier, chunks: int) -> float | None:
        """What reading so many chunks would take; None: not measured yet."""
        rate = self._lines[tier].rate
        return None if not rate else chunks * self._chunk_bytes / rate

    def fetch_budget_s(self, chunks: int, most_s: float) -> float:
        """How long a fetch may take before computing would have been the better choice."""
        if not self._enabled:
            return most_s
        compute_s = self.compute_s(chunks)
        return min(most_s, UNKNOWN_BUDGET_S if compute_s is None else max(compute_s, 0.05))

    def lookup_patience_s(self, chunks: int, least_s: float) -> float:
        """How long to wait for the store's answer about so many chunks."""
        compute_s = self.compute_s(chunks)
        worth_s = UNKNOWN_PATIENCE_S if compute_s is None else SHARE_FOR_LOOKUP * compute_s
        return max(least_s, min(worth_s, MOST_PATIENCE_S))

    def worth_asking(self, chunks: int) -> bool:
        """Whether a request shall wait for the store's answer about so many chunks while others run. The end of a prompt that is
        otherwise cached is computed sooner than it is asked for, and loaded."""
        compute_s = self.compute_s(chunks)
        if not self._enabled or compute_s is None or self.decode_step_s is None:
            return True
        return compute_s > STEPS_OF_A_HIT * self.decode_step_s

    def figures(self) -> dict[tuple[str, Tier | None], float]:
        """Inputs and outcome, for metrics: ("prefill_tokens_per_second", None), ("read_bytes_per_second", tier), ..."""
        figures: dict[tuple[str, Tier | None], float] = {}
        if self.prefill_rate is not None:
            figures["prefill_tokens_per_second", None] = self.prefill_rate
        if self.decode_step_s is not None:
            figures["decode_step_seconds", None] = self.decode_step_s
        for tier, line in self._lines.items():
            if line.rate is not None:
                figures["read_bytes_per_second", tier] = line.rate
                figures["admitted", tier] = float(self.allows(tier))
        return figures

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
