"""``python -m e2e.demo engine`` (processes on this machine) or ``cluster`` (Kubernetes)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from e2e.cluster.progress import ClusterError
from e2e.demo import report
from e2e.demo.stage import Stage
from e2e.demo.steps import Play, stopwatch


def main() -> int:
    """Entry point. The exit code is 0 only if everything that the demo promises was seen."""
    parser = argparse.ArgumentParser(prog="e2e.demo", description=__doc__)
    parser.add_argument("stage", choices=["engine", "cluster"])
    arguments = parser.parse_args()
    say = stopwatch()
    stage: AbstractContextManager[Stage]
    if arguments.stage == "engine":
        from e2e.demo.processes import Processes

        stage = Processes(say)
    else:
        from e2e.demo.cluster import Cluster

        stage = Cluster(say)
    try:
        return _play(stage, say)
    except (OSError, RuntimeError, ClusterError) as error:
        print(f"\ndemo: failed: {error}")
        return 1


def _play(stage: AbstractContextManager[Stage], say: Callable[[str], None]) -> int:
    with stage as ready:
        steps = Play(ready, say).run()
        print(f"\n{report.table(steps)}\n\n{ready.look_further()}\n")
        print(report.figures(steps))
        failed = report.failures(steps)
    print("demo: ok" if not failed else "demo: failed: " + "; ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
