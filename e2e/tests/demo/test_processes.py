"""The demo's steps on two vLLM processes and a Redis, with short prompts and in every number type."""

from __future__ import annotations

import pytest

from e2e.demo import report
from e2e.demo.__main__ import judged
from e2e.demo.processes import Processes
from e2e.demo.steps import FULL_HIT, Play, prompts
from testkit.host import DTYPES, Dtype


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_step_keeps_its_promise(dtype: Dtype) -> None:
    """Texts, whole hits, what hits cost, and what a dead store costs: everything but times that a busy machine can spoil.

    Times are the demo's business: it plays whole documents, and the store is killed five times.
    """
    with Processes(print, dtype) as stage:
        play = Play(stage, print, prompts(dtype, short=True), rounds=1)
        steps = play.run()
    verdict = judged(play, stage, print)
    print(report.table(steps, verdict))
    assert verdict.faults == ()
    hits = {step.key: step.hit_fraction for step in steps}
    assert {key: hits[key] for key in report.FULL_HIT_STEPS if hits[key] < FULL_HIT} == {}
    assert hits["cold_s"] < 0.01
