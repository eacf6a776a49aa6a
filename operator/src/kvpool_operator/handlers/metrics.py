"""What the operator measures, under the names that dashboards know. ``prometheus-client`` writes the format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class Requests(Collector):
    """How often the API server was asked, by HTTP method. Renewals of the Lease are not among it."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """Take the counts, which the client goes on to count up."""
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Return the present counts."""
        family = CounterMetricFamily("kvpool_operator_api_requests", "Requests to the API server.", labels=["method"])
        for method, count in self._counts.items():
            family.add_metric([method], count)
        return [family]


def registry(
    *, requests: Mapping[str, int], is_leader: Callable[[], bool], further: Iterable[Collector]
) -> CollectorRegistry:
    """Return all metrics of one operator. Each has its own, so that tests can run several in a process."""
    made = CollectorRegistry()
    made.register(Requests(requests))
    leader = Gauge("kvpool_operator_leader", "1 on the replica that reconciles.", registry=made)
    leader.set_function(lambda: float(is_leader()))
    for collector in further:
        made.register(collector)
    return made
