"""What an engine's scheduler and the connector tell on ``/metrics``, without Prometheus.

Prometheus' client has one registry for a process, in which two engines could not be told apart.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger


class Figures(PrometheusStatLogger):
    """Keeps the connector's counters and gauges, in the place of vLLM's logger for Prometheus."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        """Take vLLM's arguments; nothing is registered with Prometheus."""
        self.preempted = 0
        """Requests that had to give up their blocks."""
        self._values: dict[tuple[str, str], float] = {}

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Add what a step reported: counters are added up, gauges keep their last value."""
        if iteration_stats is not None:
            self.preempted += iteration_stats.num_preempted_reqs
        stats = None if scheduler_stats is None else scheduler_stats.kv_connector_stats
        if not stats:
            return
        for name, by_labels in stats["data"].items():
            kind = stats["types"][name]
            for labels, value in by_labels.items():
                key = name, ",".join(labels)
                if kind == "counter":
                    self._values[key] = self._values.get(key, 0.0) + value
                elif kind == "gauge":
                    self._values[key] = value

    def value(self, name: str, labels: str = "") -> float | None:
        """Return a figure as ``/metrics`` shows it, or None if there is none yet.

        Args:
            name: for example ``kvpool:admitted``; counters have no suffix here.
            labels: the values of the figure's labels with commas between them, as in ``remote``.
        """
        return self._values.get((name, labels))

    def all(self) -> dict[str, float]:
        """Return all figures, each under its name with the values of its labels in braces."""
        return {f"{name}{{{labels}}}" if labels else name: value for (name, labels), value in self._values.items()}

    def log_engine_initialized(self) -> None:
        """Say nothing."""
