"""The demo's last words: a table, one line of JSON, a verdict. Pure."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence

from e2e.demo.steps import FULL_HIT, Step, by_key
from testkit.host import describe
from testkit.oracle import Verdict


@dataclasses.dataclass(frozen=True)
class HitLimit:
    """What a hit may cost: a share of computing the prompt, or so much more than a hit on the device, whichever is longer.

    The second one is for hosts that compute so fast that the share says nothing about kvpool.
    """

    share: float
    beyond_device_s: float

    def seconds(self, cold_s: float, device_s: float) -> float:
        """Return the limit on this host."""
        return max(cold_s * self.share, device_s + self.beyond_device_s)


HIT_LIMITS = {"cpu_tier_s": HitLimit(1 / 15, 0.2), "other_engine_s": HitLimit(1 / 8, 0.5)}
FULL_HIT_STEPS = ("cpu_tier_s", "other_engine_s", "restarted_s", "store_back_s")
LOST_STEPS = ("store_lost_fresh_s", "store_lost_s", "store_gone_s")
"""Steps in which the store is dead: what it costs beyond computing is bounded by `lost_limit_s`."""


def lost_limit_s(cold_s: float) -> float:
    """Return what the first token may take where the store died: max(1.5 × cold, cold + 0.5 s)."""
    return max(1.5 * cold_s, cold_s + 0.5)


def lost_share(step: Step) -> float:
    """Return the median of what first tokens took, each as a share of its limit at that time."""
    pairs = zip(step.answers, step.computed_s, strict=True)
    return statistics.median(answer.ttft_s / lost_limit_s(cold_s) for (_, answer), cold_s in pairs)


def table(steps: Sequence[Step], verdict: Verdict) -> str:
    """Return one row per step, and how the texts were judged; fits 100 columns."""
    cold = steps[0].seconds
    rows = [f"{'step':36} {'from':12} {'n':>2} {'first token':>12} {'of cold':>9} {'cached':>8}"]
    for step in steps:
        share = f"1/{cold / step.seconds:.1f}" if step.seconds < cold / 2 else f"{step.seconds / cold:.2f}"
        rows.append(
            f"{step.title:36} {step.source:12} {len(step.answers):2} {step.seconds:10.3f} s {share:>9} "
            f"{step.hit_fraction:7.1%}"
        )
    for step in steps:
        if step.key in LOST_STEPS:
            cold_s = statistics.median(step.computed_s)
            rows.append(
                f"   {step.title.strip()}: {lost_share(step):.0%} of its limit; a new prompt computed beside it: {cold_s:.2f} s"
            )
    count = sum(len(step.answers) for step in steps)
    rows.append(f"texts: {count - len(verdict.faults)} of {count} right; rule: {verdict.rule}")
    return "\n".join(rows)


def figures(steps: Sequence[Step], verdict: Verdict) -> str:
    """Return the line that machines read."""
    content: dict[str, object] = {step.key: round(step.seconds, 3) for step in steps}
    content["samples"] = {step.key: [round(answer.ttft_s, 3) for _, answer in step.answers] for step in steps}
    content["hit_fractions"] = {step.key: [round(one, 4) for one in step.hit_fractions] for step in steps}
    lost = [step for step in steps if step.key in LOST_STEPS]
    content["computed_beside_s"] = {step.key: [round(cold_s, 3) for cold_s in step.computed_s] for step in lost}
    content["share_of_lost_limit"] = {step.key: round(lost_share(step), 3) for step in lost}
    content["texts"] = {"rule": verdict.rule, "faults": len(verdict.faults)}
    content["machine"] = describe()
    return "demo-figures: " + json.dumps(content)


def failures(steps: Sequence[Step], verdict: Verdict) -> list[str]:
    """Return what was promised and did not come true."""
    seconds = {key: step.seconds for key, step in by_key(steps).items()}
    cold = seconds["cold_s"]
    found = list(verdict.faults)
    for step in steps:
        name = step.title.strip()
        if step.key in FULL_HIT_STEPS and step.hit_fraction < FULL_HIT:
            found.append(f"{name}: {step.hit_fraction:.1%} of whole chunks cached, {FULL_HIT:.0%} expected")
        if step.key in HIT_LIMITS:
            limit = HIT_LIMITS[step.key].seconds(cold, seconds["device_s"])
            if step.seconds > limit:
                found.append(f"{name}: {step.seconds:.2f} s, more than {limit:.2f} s where cold is {cold:.2f} s")
        if step.key in LOST_STEPS and (share := lost_share(step)) > 1:
            found.append(
                f"{name}: {share:.2f} of what it may cost: max(1.5 x cold, cold + 0.5 s), where cold is computed beside it"
            )
    if (first := max(steps[0].hit_fractions)) > 0.01:
        found.append(f"the cold step was not cold: {first:.1%} cached")
    return found
