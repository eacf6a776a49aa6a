"""Says what became of kvpool in an engine: one line in the log, and a gauge on vLLM's `/metrics`.

The gauge belongs to the process that parsed vLLM's arguments, which is the one that answers
`/metrics`. With several front ends each parses them, and the Prometheus client's files bring them
together, so the gauge holds the greatest value of all (vLLM 0.32, ``v1/metrics/prometheus.py``).
"""

from __future__ import annotations

import functools

from prometheus_client import Gauge

from kvpool_connector.log import get_logger
from kvpool_connector.vllm.choice import State

logger = get_logger(__name__)

METRIC = "kvpool_engine_state"
LONGEST_REASON = 200
"""In characters: a reason is a label, and a whole traceback would be too much for one."""


@functools.cache
def _gauge() -> Gauge:
    """Return the gauge, which a process may register once."""
    return Gauge(
        METRIC,
        "1 for what became of kvpool in this engine, and why.",
        ("state", "reason"),
        multiprocess_mode="max",
    )


def tell(state: State, reason: str) -> None:
    """Log a state and set the gauge. A process may build several configurations: the last one counts."""
    level = logger.info if state is State.ACTIVE else logger.warning
    said = short(reason)
    level("kvpool is %s in this engine: %s", state, said)
    gauge = _gauge()
    # Not removed but 0: the client's files for several processes keep every label.
    for former in [sample.labels for metric in gauge.collect() for sample in metric.samples]:
        gauge.labels(**former).set(0)
    gauge.labels(state=state.value, reason=said).set(1)


def short(reason: str) -> str:
    """Return the first line of a reason, cut to what a label may hold."""
    line = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"
