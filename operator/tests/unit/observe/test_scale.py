"""What a large cluster costs: a look at one pool does not pass over all, and a list of Pods is not held as a whole."""

from __future__ import annotations

import tracemalloc
from typing import Any

import httpx2 as httpx
import pytest

from kvpool_operator.kube import Client, Refused
from kvpool_operator.observe import cache as cache_module
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.consumers import Consumers, scan
from kvpool_operator.observe.parents import Parents
from kvpool_operator.observe.pools import Pools
from kvpool_operator.observe.prime import prime

from .api_server import ApiServer
from .test_cache import body
from .test_consumers import pod

PODS = 100
"""On a page."""
PAGES = 40


def test_children_are_found_without_passing_over_others(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache()
    for number in range(100):
        cache.put(body(1, name=f"c{number}", pool=f"p{number % 50}"))
    calls: list[Any] = []
    monkeypatch.setattr(cache_module, "pool_of", calls.append)
    assert [one["metadata"]["name"] for one in cache.children("team", "p7")] == ["c7", "c57"]
    assert calls == []


def test_a_child_that_changes_its_pool_is_one_of_the_other() -> None:
    cache = Cache()
    cache.put(body(1, pool="old"))
    cache.put(body(2, pool="new"))
    assert cache.children("team", "old") == ()
    assert len(cache.children("team", "new")) == 1
    assert cache.pools() == (("team", "new"),)
    cache.drop(body(3, pool="new"))
    assert cache.pools() == ()


def test_consumers_are_found_by_their_pool() -> None:
    consumers = Consumers()
    for number in range(20):
        consumers.put(pod(f"p{number}", pool=f"pool{number % 10}"))
    assert {one.pod for one in consumers.of(("team", "pool3"))} == {"p3", "p13"}
    consumers.put(pod("p3", version=2, pool="pool4"))
    assert {one.pod for one in consumers.of(("team", "pool3"))} == {"p13"}
    assert {one.pod for one in consumers.of(("team", "pool4"))} == {"p3", "p4", "p14"}


def pages(request: httpx.Request) -> httpx.Response:
    """Answer with one page of Pods, of 4 KiB each, that name no pool; the last one does."""
    number = int(request.url.params.get("continue", "0"))
    metadata = {"namespace": "team", "resourceVersion": "1", "annotations": {"text": "x" * 4096}}
    items = [{"metadata": {**metadata, "name": f"p{number}-{place}"}} for place in range(PODS)]
    if number == PAGES - 1:
        items[-1]["metadata"]["annotations"] = {"kvpool.dev/pool": "demo"}
    following = {"continue": str(number + 1)} if number < PAGES - 1 else {}
    return httpx.Response(200, json={"metadata": {"resourceVersion": "9", **following}, "items": items})


async def test_a_list_of_all_pods_takes_the_memory_of_a_page() -> None:
    client = Client(httpx.AsyncClient(transport=httpx.MockTransport(pages), base_url="https://cluster"))
    page_bytes = PODS * 4096
    tracemalloc.start()
    try:
        found, _, _ = await scan(client, Parents(client, lambda: 0.0), ())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one.pod for one in found] == [f"p{PAGES - 1}-{PODS - 1}"]
    assert client.requests["GET"] == PAGES
    assert peak < PAGES * page_bytes / 4


def lost(namespace: str) -> Client:
    """Return a client whose server lets it into all namespaces but this one."""

    def answer(request: httpx.Request) -> httpx.Response:
        if f"/namespaces/{namespace}/" in request.url.path:
            return httpx.Response(403, json={"message": "forbidden"})
        body = {"metadata": {"name": "p", "namespace": "kept", "resourceVersion": "1"}}
        body["metadata"]["annotations"] = {"kvpool.dev/pool": "demo"}  # type: ignore[assignment]
        return httpx.Response(200, json={"metadata": {"resourceVersion": "9"}, "items": [body]})

    return Client(httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="https://cluster"))


async def test_a_namespace_that_is_lost_keeps_no_other_from_being_served() -> None:
    client = lost("gone")
    pools, cache = Pools(client, lambda: 0.0), Cache()
    await prime(client, pools, cache, ("gone", "kept"))
    assert tuple(pools.keys()) == (("kept", "p"),)
    consumers = Consumers()
    before = pod("old", pool="demo")
    before["metadata"]["namespace"] = "gone"
    consumers.put(before)
    consumers.begin_list()
    consumers.replace(*await scan(client, Parents(client, lambda: 0.0), ("gone", "kept")))
    assert [one.pod for one in consumers.of(("kept", "demo"))] == ["p"]
    assert [one.pod for one in consumers.of(("gone", "demo"))] == ["old"]


async def test_who_is_let_in_nowhere_is_not_ready() -> None:
    client = lost("gone")
    with pytest.raises(Refused):
        await prime(client, Pools(client, lambda: 0.0), Cache(), ("gone",))
    with pytest.raises(Refused):
        await scan(client, Parents(client, lambda: 0.0), ("gone",))


async def test_a_fault_is_no_refusal() -> None:
    """Then nothing is known of any namespace, and the caches wait."""
    server = ApiServer()
    server.fault = 503
    with pytest.raises(Exception, match="a fault"):
        await prime(server.client, Pools(server.client, lambda: 0.0), Cache(), ("a", "b"))
