"""The demo's steps on two vLLM processes and a Redis, with short prompts and in every number type."""

from __future__ import annotations

import pytest

from e2e.demo import report
from e2e.demo.__main__ import judged
from e2e.demo.processes import Processes
from e2e.demo.steps import FULL_HIT, Play, by_key, prompts
from testkit.host import DTYPES, Dtype


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_step_keeps_its_promise(dtype: Dtype) -> None:
    """Texts are right, and blocks come from where they should.

    Times are the demo's business: it plays whole documents, and kills the store five times. Of the hits in the store some
    may be missing here, since an answer that is late on a busy machine is a miss by design.
    """
    with Processes(print, dtype) as stage:
        play = Play(stage, print, prompts(dtype, short=True), rounds=1)
        steps = play.run()
    verdict = judged(play, stage, print)
    print(report.table(steps, verdict))
    assert verdict.faults == ()
    hits = {key: step.hit_fraction for key, step in by_key(steps).items()}
    assert hits["cold_s"] < 0.01
    assert hits["cpu_tier_s"] >= FULL_HIT
    assert {key: hits[key] for key in report.FULL_HIT_STEPS if hits[key] < 0.75} == {}
