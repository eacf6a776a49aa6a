"""``python -m e2e.demo engine`` (processes on this machine) or ``cluster`` (Kubernetes)."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from e2e import footprint
from e2e.cluster.progress import ClusterError
from e2e.demo import report
from e2e.demo.stage import ENGINE_ARGUMENTS, Stage
from e2e.demo.steps import Play, prompts, stopwatch
from testkit.oracle import Alone, Verdict, judge

_ANSWERS_PER_LINE = 5


def main() -> int:
    """Entry point. The exit code is 0 only if everything that the demo promises was seen."""
    parser = argparse.ArgumentParser(prog="e2e.demo", description=__doc__)
    parser.add_argument("stage", choices=["engine", "cluster"])
    arguments = parser.parse_args()
    say = stopwatch()
    stage: AbstractContextManager[Stage]
    try:
        if arguments.stage == "engine":
            from e2e.demo.processes import Processes

            stage = Processes(say)
        else:
            from e2e.demo.cluster import Cluster

            stage = Cluster(say)
        return _play(stage, say)
    except (OSError, RuntimeError, ValueError, ClusterError) as error:
        print(f"\ndemo: failed: {error}")
        return 1


def judged(play: Play, stage: Stage, say: Callable[[str], None]) -> Verdict:
    """Judge the texts of all steps; see :mod:`testkit.oracle`."""

    def alone() -> Alone:
        say("vLLM alone starts and says what is right")
        return Alone(Path(tempfile.mkdtemp(prefix="kvpool-oracle-")), stage.dtype, ENGINE_ARGUMENTS)

    def asked(done: int, of: int) -> None:
        if done % _ANSWERS_PER_LINE == 0 or done == of:
            say(f"  {done} of {of} texts of vLLM alone")

    return judge(play.samples(), stage.dtype, alone, asked)


def _play(stage: AbstractContextManager[Stage], say: Callable[[str], None]) -> int:
    with stage as ready:
        play = Play(ready, say, prompts(ready.dtype))
        steps = play.run()
        verdict = judged(play, ready, say)
        print(f"\n{report.table(steps, verdict)}\n\n{ready.look_further()}\n")
        print(report.figures(steps, verdict))
        print(footprint.closing())
        failed = report.failures(steps, verdict)
    print("demo: ok" if not failed else "demo: failed: " + "; ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
