"""The demo's last words: a table, one line of JSON, a verdict. Pure."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from e2e.demo.steps import Step, texts_identical
from testkit.engine import best_dtype

LIMITS = {"cpu_tier_s": 1 / 15, "other_engine_s": 1 / 8}
"""Largest share of the cold time, for steps that promise one."""
FULL_HIT_STEPS = ("cpu_tier_s", "other_engine_s", "restarted_s", "store_back_s")
FULL_HIT = 0.99


def machine() -> dict[str, str | int | float]:
    """What the times were measured on."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**20, 1),
        "dtype": best_dtype(),
        "kernel": platform.release(),
    }


def table(steps: Sequence[Step]) -> str:
    """One row per step; fits 100 columns."""
    cold = steps[0].seconds
    rows = [f"{'step':36} {'from':12} {'n':>2} {'first token':>12} {'of cold':>9} {'cached':>8}"]
    for step in steps:
        share = f"1/{cold / step.seconds:.1f}" if step.seconds < cold / 2 else f"{step.seconds / cold:.2f}"
        rows.append(
            f"{step.title:36} {step.source:12} {len(step.answers):2} {step.seconds:10.3f} s {share:>9} "
            f"{step.hit_fraction:7.1%}"
        )
    return "\n".join(rows)


def figures(steps: Sequence[Step]) -> str:
    """The line that machines read."""
    content: dict[str, object] = {step.key: round(step.seconds, 3) for step in steps}
    content["hit_fraction"] = {step.key: round(step.hit_fraction, 4) for step in steps}
    content["texts_identical"] = texts_identical(steps)
    content["machine"] = machine()
    return "demo-figures: " + json.dumps(content)


def failures(steps: Sequence[Step]) -> list[str]:
    """What was promised and did not come true."""
    found = []
    cold = steps[0].seconds
    if not texts_identical(steps):
        found.append("the texts of a prompt differ between steps")
    for step in steps:
        if step.key in FULL_HIT_STEPS and step.hit_fraction < FULL_HIT:
            found.append(
                f"{step.title.strip()}: {step.hit_fraction:.1%} of whole blocks cached, {FULL_HIT:.0%} expected"
            )
        limit = LIMITS.get(step.key)
        if limit is not None and step.seconds > cold * limit:
            found.append(
                f"{step.title.strip()}: {step.seconds:.2f} s, more than 1/{1 / limit:.0f} of cold {cold:.2f} s"
            )
    if (first := steps[0].hit_fraction) > 0.01:
        found.append(f"the cold step was not cold: {first:.1%} cached")
    return found


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
