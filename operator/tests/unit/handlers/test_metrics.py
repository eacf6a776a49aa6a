"""The metrics under the names and in the text that dashboards read."""

from __future__ import annotations

from collections import Counter

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvpool_operator.handlers import metrics
from kvpool_operator.handlers.turns import Turns
from kvpool_operator.webhook.server import Timings


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_all_of_them() -> None:
    requests = Counter({"GET": 3})
    timings = Timings()
    leads = False
    made = metrics.registry(requests=requests, is_leader=lambda: leads, further=(timings, Turns()))
    requests["PATCH"] += 2
    for seconds in (0.01, 0.02, 0.03):
        timings.add(seconds)
    leads = True
    assert samples(generate_latest(made).decode()) == {
        ("kvpool_operator_api_requests_total", (("method", "GET"),)): 3,
        ("kvpool_operator_api_requests_total", (("method", "PATCH"),)): 2,
        ("kvpool_operator_leader", ()): 1,
        ("kvpool_operator_webhook_seconds", (("quantile", "0.5"),)): 0.02,
        ("kvpool_operator_webhook_seconds", (("quantile", "0.99"),)): 0.03,
        ("kvpool_operator_webhook_seconds_count", ()): 3,
        ("kvpool_operator_longest_turn_seconds", ()): 0,
    }
    leads = False
    assert samples(generate_latest(made).decode())["kvpool_operator_leader", ()] == 0
