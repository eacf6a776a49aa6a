"""Load or compute? A hit in a lower tier is worth loading only where loading is faster.

Two rates are measured while the engine works: how fast each lower tier delivers (timed reads of the ranks) and how fast the
engine prefills (:mod:`kvpool_connector.scheduler.passes`). Both sides of the comparison are seconds. A remote store that is
slower than computing made time to first token 2.6 times worse in LMCache (issue 914 there): a hit alone is no reason to load.

A tier is closed and opened by the two rates alone, never by what is queued. Whether one request is loaded or computed depends on
both queues as well: the loads that were begun before it, and the prompt tokens that running requests have still to compute.

Memory is not asked about: a copy at memory speed beats any forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kvpool_connector.log import get_logger
from kvpool_connector.scheduler.passes import Passes
from kvpool_connector.scheduler.tier_speed import TierSpeed
from kvpool_connector.transfer import Tier

logger = get_logger(__name__)

CLOSE_ABOVE, OPEN_BELOW = 0.9, 0.7
"""Loading time ÷ computing time. The gap keeps a tier at the border from switching with every request."""
LEAST_BUDGET_S, BUDGET_SLACK = 0.05, 1.5
"""The least time that a fetch gets, and how much longer than computing it may take before it is given up: estimates that are
a little off must not cut a load that nearly arrived."""
UNKNOWN_BUDGET_S = 2.0
"""What a fetch may take as long as nothing was computed that it could be compared with."""
SHARE_FOR_LOOKUP, UNKNOWN_PATIENCE_S, MOST_PATIENCE_S = 0.05, 0.5, 1.0
"""Of what computing a prompt would take: so long waiting for the store's answer is worth while. And as long as nothing was
computed: on a busy node of two cores 0.2 s lost whole documents, each of which took seconds to compute (measured)."""
STEPS_OF_A_HIT = 2
"""What a hit in the store costs a request at least while others run: a step until the answer is known, and one for the load. (On
the CPU a second one: vLLM 0.32 begins a load when the pass was launched, which there means computed.)"""


class Admission:
    """Estimates and the decision that follows. One thread; the clock is read for passes and probes."""

    def __init__(
        self, chunk_bytes: int, chunk_tokens: int, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        chunk_bytes: one rank's part of a chunk.
        chunk_tokens: tokens that computing a chunk takes.
        enabled: False: every hit is loaded; rates are still measured.
        """
        self._chunk_tokens = chunk_tokens
        self._enabled, self._clock = enabled, clock
        self._speeds = {tier: TierSpeed(chunk_bytes) for tier in (Tier.DISK, Tier.REMOTE)}
        self._closed: set[Tier] = set()
        self._passes = Passes()

    # ---- measurements --------------------------------------------------------------------------------------

    def read(self, tier: Tier, nbytes: int, seconds: float, *, at_most: bool = False) -> None:
        """See :meth:`TierSpeed.read`."""
        self._speeds[tier].read(nbytes, seconds, self._clock(), at_most=at_most)
        self._decide(tier)

    def pass_launched(self, prefill_tokens: int, decode_tokens: int) -> int:
        """See :meth:`Passes.launch`."""
        return self._passes.launch(prefill_tokens, decode_tokens, self._clock())

    def pass_ended(self, number: int) -> None:
        """See :meth:`Passes.end`."""
        self._passes.end(number, self._clock())
        for tier in self._speeds:
            self._decide(tier)

    # ---- decisions -----------------------------------------------------------------------------------------

    def allows(self, tier: Tier) -> bool:
        """Return whether hits in this tier are loaded at all."""
        return not self._enabled or tier not in self._closed

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

    def awaits_measurement(self, tier: Tier) -> bool:
        """Return whether a request should wait until it is known how fast the tier is; see
        :meth:`TierSpeed.awaits`, which bounds that."""
        speed = self._speeds[tier]
        if not self._enabled or speed.is_known(closed=tier in self._closed):
            return False
        return speed.awaits(self._clock())

    def ends_wait(self) -> bool:
        """Return True when the time for some tier's first measurements has just ended: requests wait
        for them no longer."""
        now = self._clock()
        ended = [tier for tier, speed in self._speeds.items() if speed.ends_wait(now)]
        for tier in ended:
            self._decide(tier)
        return bool(ended)

    def wants_probe(self, tier: Tier) -> bool:
        """See :meth:`TierSpeed.wants_probe`."""
        return self._speeds[tier].wants_probe(self._clock())

    def compute_s(self, chunks: int, prefill_tokens: int = 0) -> float | None:
        """Return how long computing so many chunks takes, behind so many other tokens; None: not measured yet."""
        rate = self._passes.prefill_rate
        return None if rate is None else (chunks * self._chunk_tokens + prefill_tokens) / rate

    def load_s(self, tier: Tier, chunks: int) -> float | None:
        """See :meth:`TierSpeed.load_s`."""
        return self._speeds[tier].load_s(chunks)

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

    def uses_answer(self, tier: Tier) -> bool:
        """Return whether a tier's answer about a key would be used: for a load, or to measure a closed tier."""
        return self.allows(tier) or self._speeds[tier].probe_is_due(self._clock())

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
        for tier, speed in self._speeds.items():
            measured["read_bytes_per_second", tier] = speed.rate
            measured["chunk_load_seconds", tier] = speed.load_s(1)
            measured["admitted", tier] = None if speed.rate is None else float(self.allows(tier))
        return {name: figure for name, figure in measured.items() if figure is not None}

    def _decide(self, tier: Tier) -> None:
        load_s, compute_s = self.load_s(tier, 1), self.compute_s(1)
        if load_s is None or compute_s is None:
            return
        was_open = tier not in self._closed
        is_open = load_s / compute_s < (CLOSE_ABOVE if was_open else OPEN_BELOW)
        (self._closed.discard if is_open else self._closed.add)(tier)
        if was_open != is_open and self._enabled:
            logger.warning(
                "%s tier: reading a chunk takes %.1f ms, computing it %.1f ms: its hits are %s from now on",
                tier.value, load_s * 1e3, compute_s * 1e3, "loaded" if is_open else "computed",
            )  # fmt: skip
