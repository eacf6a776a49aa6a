"""What is asked of the API server at an admission: an answer that does not come is not a no."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.injection.names import RAY_CLUSTER_KIND, Parent
from kvpool_operator.kube import ApiError
from kvpool_operator.observe import parents as parents_module
from kvpool_operator.observe import pools as pools_module
from kvpool_operator.observe.consumers import Consumers, scan
from kvpool_operator.observe.parents import Parents
from kvpool_operator.observe.pools import Pools

from .api_server import ApiServer

KEY = ("team", "demo")
BODY = {"metadata": {"namespace": "team", "name": "demo", "resourceVersion": "3"}, "spec": {}}
CLUSTER = Parent(RAY_CLUSTER_KIND, "llms")
FAULTS = [0, 500, 429]


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pools_module, parents_module):
        monkeypatch.setattr(module, "_PATIENCE", 0.01)


def clock() -> float:
    """Time stands still, so that what is remembered stays."""
    return 0.0


@pytest.mark.parametrize("fault", [*FAULTS, 403])
async def test_a_pool_that_could_not_be_asked_for(fault: int) -> None:
    server = ApiServer({"/demo": BODY})
    pools = Pools(server.client, clock)
    server.fault = fault
    with pytest.raises(ApiError):
        await pools.get(KEY)
    server.fault = None
    assert await pools.get(KEY) == BODY, "nothing was remembered of the fault"


async def test_a_pool_that_is_absent_is_asked_for_once() -> None:
    server = ApiServer()
    pools = Pools(server.client, clock)
    assert [await pools.get(KEY) for _ in range(3)] == [None] * 3
    assert server.asked == 1


async def test_a_pool_is_kept_under_the_name_that_was_asked_for() -> None:
    other = {"metadata": {**BODY["metadata"], "name": "other", "namespace": "elsewhere"}, "spec": {}}
    server = ApiServer({"/demo": other})
    pools = Pools(server.client, clock)
    await pools.get(KEY)
    server.objects.clear()
    assert await pools.get(KEY) == other
    assert await pools.get(("elsewhere", "other")) is None


async def test_a_pool_that_the_watch_showed_meanwhile_is_newer() -> None:
    server = ApiServer({"/demo": BODY})
    pools = Pools(server.client, clock)
    newer = {**BODY, "metadata": {**BODY["metadata"], "resourceVersion": "4"}}
    pools.put(newer)
    pools.put(BODY)
    assert await pools.get(KEY) == newer
    assert server.asked == 0


async def test_an_answer_that_is_older_than_the_deletion_brings_no_pool_back() -> None:
    """The question was asked before the watch showed the deletion."""
    server = ApiServer({"/demo": BODY})
    pools = Pools(server.client, clock)
    gone = {**BODY, "metadata": {**BODY["metadata"], "resourceVersion": "4"}}
    pools.drop(gone)
    assert await pools.get(KEY) is None
    again = {**BODY, "metadata": {**BODY["metadata"], "resourceVersion": "5"}}
    pools.put(again)
    assert await pools.get(KEY) == again


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_cluster_that_could_not_be_asked_for(fault: int) -> None:
    cluster = {"metadata": {"name": "llms", "annotations": {"kvpool.dev/pool": "demo"}}}
    server = ApiServer({"/llms": cluster})
    parents = Parents(server.client, clock)
    server.fault = fault
    with pytest.raises(ApiError):
        await parents.pool("team", CLUSTER)
    server.fault = None
    assert await parents.pool("team", CLUSTER) == "demo", "nothing was remembered of the fault"


@pytest.mark.parametrize("fault", [None, 403], ids=["absent", "forbidden"])
async def test_an_answer_about_a_cluster_is_remembered(fault: int | None) -> None:
    server = ApiServer()
    server.fault = fault
    parents = Parents(server.client, clock)
    assert [await parents.pool("team", CLUSTER) for _ in range(3)] == [None] * 3
    assert server.asked == 1


def ray_pod(name: str, **annotations: str) -> dict[str, Any]:
    head = {"name": name, "namespace": "team", "resourceVersion": "1", "labels": {"ray.io/cluster": "llms"}}
    return {"metadata": {**head, "annotations": annotations}}


async def test_pods_whose_cluster_could_not_be_asked_for_stay_as_they_were_known() -> None:
    marks = {"kvpool.dev/pool": "demo"}
    consumers = Consumers()
    consumers.put(ray_pod("known", **marks))
    consumers.put(ray_pod("gone", **marks))
    server = ApiServer({"/pods": {"items": [ray_pod("known"), ray_pod("new"), ray_pod("own", **marks)]}})
    server.held = {"/llms"}
    parents = Parents(server.client, clock)
    consumers.begin_list()
    assert consumers.replace(*await scan(server.client, parents, ())) == {KEY}
    assert {one.pod for one in consumers.of(KEY)} == {"known", "own"}
    assert server.asked == 2, "one list, and the cluster once for all of its Pods"
