"""Decisions while the API server does not answer: the Pod passes, and says what is known."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.api import Settings
from kvpool_operator.injection import pod as pod_module
from kvpool_operator.injection.facts import Facts
from kvpool_operator.injection.outcome import Outcome
from kvpool_operator.observe import parents as parents_module
from kvpool_operator.observe import pools as pools_module
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.parents import Parents
from kvpool_operator.observe.pools import Pools
from kvpool_operator.webhook import admission as admission_module
from kvpool_operator.webhook.admission import Admission

from ..injection.pods import facts, pod, serve
from ..observe.api_server import ApiServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    monkeypatch.setattr(pools_module, "_PATIENCE", 0.01)
    monkeypatch.setattr(parents_module, "_PATIENCE", 0.01)
    monkeypatch.setattr(admission_module, "_PATIENCE", 0.2)
    return ApiServer()


def admission(server: ApiServer) -> Admission:
    def clock() -> float:
        return 0.0

    return Admission(Pools(server.client, clock), Cache(), Parents(server.client, clock), Settings())


def request(body: dict[str, Any]) -> dict[str, Any]:
    return {"uid": "u", "namespace": "team", "object": body}


@pytest.mark.parametrize("fault", [0, 500])
async def test_a_pod_whose_pool_could_not_be_asked_for(server: ApiServer, fault: int) -> None:
    server.fault = fault
    outcome = await admission(server).pod(request(pod(serve())))
    assert outcome is not None
    reason = outcome.body["metadata"]["annotations"]["kvpool.dev/skip-reason"]
    assert reason.startswith("NoAnswer: the API server did not say")
    assert "restart the Pod" in reason
    assert server.asked > 1, "it is asked again while there is time"


async def test_a_pod_whose_cluster_could_not_be_asked_for_passes_as_it_is(server: ApiServer) -> None:
    """Whether it is any of kvpool's business is not known; the list of all Pods finds it where it is."""
    server.fault = 0
    body = pod(serve(), annotations={}, labels={"ray.io/cluster": "llms"})
    assert await admission(server).pod(request(body)) is None


async def test_a_pod_whose_pool_is_absent(server: ApiServer) -> None:
    outcome = await admission(server).pod(request(pod(serve())))
    assert outcome is not None
    assert outcome.body["metadata"]["annotations"]["kvpool.dev/skip-reason"].startswith("PoolMissing: ")


async def test_a_fault_of_ours_is_a_reason_on_the_pod(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So that nobody takes it for a Pod that the webhook never saw."""

    async def known(*_: Any) -> Facts:
        return facts()

    def broken(*_: Any) -> Outcome:
        raise KeyError("ours")

    monkeypatch.setattr(Admission, "_facts", known)
    monkeypatch.setattr(pod_module, "inject", broken)
    body = pod(serve())
    outcome = await admission(server).pod(request(body))
    assert outcome is not None
    assert outcome.body["spec"] == body["spec"]
    assert outcome.body["metadata"]["annotations"]["kvpool.dev/skip-reason"].startswith("OperatorFault: ")
    assert "KeyError" in caplog.text
