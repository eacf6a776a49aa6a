"""Children are listed for all pools together, and what a list does not show is forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvpool_operator.kube import CHILD_KINDS, CONFIG_MAP, ApiError
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.relist import Relists

from ..fake_api import ApiServer, answer_with

SECONDS = 300.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def config_map(name: str, namespace: str = "team", pool: str = "demo") -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "kvpool-operator", "kvpool.dev/pool": pool}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


class Stage:
    def __init__(self, *namespaces: str) -> None:
        self.server = ApiServer()
        self.cache = Cache()
        self.clock = Clock()
        self.relists = Relists(self.server.client, self.cache, namespaces, seconds=SECONDS, clock=self.clock)

    def names(self, pool: str = "demo", namespace: str = "team") -> set[str]:
        return {body["metadata"]["name"] for body in self.cache.children(namespace, pool)}


async def test_a_thousand_pools_share_one_list_for_each_kind() -> None:
    stage = Stage()
    for number in range(1000):
        stage.server.put(CONFIG_MAP, config_map("c", f"n{number}"))
    await asyncio.gather(*(stage.relists.refresh(f"n{number}") for number in range(1000)))
    assert len(stage.server.calls) == len(CHILD_KINDS)
    assert stage.names(namespace="n999") == {"c"}
    stage.clock.now += SECONDS - 1
    await stage.relists.refresh("n1")
    assert len(stage.server.calls) == len(CHILD_KINDS)
    stage.clock.now += 1
    await stage.relists.refresh("n1")
    assert len(stage.server.calls) == 2 * len(CHILD_KINDS)


async def test_a_deletion_that_no_watch_told_of_is_seen() -> None:
    stage = Stage()
    stage.server.put(CONFIG_MAP, config_map("gone"))
    stage.server.put(CONFIG_MAP, config_map("stays"))
    await stage.relists.refresh("team")
    assert stage.names() == {"gone", "stays"}
    del stage.server.objects[CONFIG_MAP.object_path("team", "gone")]
    stage.clock.now += SECONDS
    await stage.relists.refresh("team")
    assert stage.names() == {"stays"}


async def test_what_is_newer_than_the_list_stays() -> None:
    stage = Stage()
    newer = config_map("newer")
    newer["metadata"]["resourceVersion"] = "999999"
    stage.cache.put(newer)
    await stage.relists.refresh("team")
    assert stage.names() == {"newer"}


async def test_each_namespace_is_listed_for_itself_where_they_are_named() -> None:
    stage = Stage("a", "b")
    for namespace in ("a", "b"):
        stage.server.put(CONFIG_MAP, config_map("c", namespace))
    await stage.relists.refresh("a")
    assert stage.names(namespace="a") == {"c"}
    assert stage.names(namespace="b") == set()
    assert [stage.relists.covers(namespace) for namespace in "abc"] == [True, True, False]


async def test_a_namespace_that_is_refused_is_so_for_itself() -> None:
    stage = Stage("a", "b")
    stage.server.put(CONFIG_MAP, config_map("c", "b"))
    stage.server.fault = lambda _, request: answer_with(403) if "/namespaces/a/" in request.url.path else None
    with pytest.raises(ApiError):
        await stage.relists.refresh("a")
    await stage.relists.refresh("b")
    assert stage.names(namespace="b") == {"c"}


async def test_a_list_that_failed_is_asked_for_again() -> None:
    stage = Stage()
    stage.server.put(CONFIG_MAP, config_map("c"))
    stage.server.fault = lambda _, __: answer_with(503)
    with pytest.raises(ApiError):
        await stage.relists.refresh("team")
    stage.server.fault = lambda _, __: None
    await stage.relists.refresh("team")
    assert stage.names() == {"c"}
