"""The watch cache under news that come late or in the wrong order."""

from __future__ import annotations

from typing import Any

from kvpool_operator.observe.cache import Cache, owner_uid


def body(version: int, *, name: str = "a", pool: str = "demo", namespace: str = "team") -> dict[str, Any]:
    return {
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "resourceVersion": str(version),
            "labels": {"kvpool.dev/pool": pool},
            "managedFields": [{"manager": "kvpool-operator"}],
        },
    }


def test_of_managed_fields_only_who_else_scales_is_kept() -> None:
    replicas: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
    entries = [
        {"manager": "kvpool-operator", "fieldsV1": replicas},
        {"manager": "kube-controller-manager", "fieldsV1": {"f:status": {"f:replicas": {}}}},
        {"manager": "kube-controller-manager", "subresource": "scale", "fieldsV1": replicas},
    ]
    cache = Cache()
    for number, expected in enumerate((entries[2:], []), start=1):
        one = body(number)
        one["metadata"]["managedFields"] = entries if expected else entries[:2]
        cache.put(one)
        found = cache.get(KEY)
        assert found is not None
        assert found["metadata"].get("managedFields", []) == expected


KEY = ("ConfigMap", "team", "a")


def version(cache: Cache) -> str | None:
    found = cache.get(KEY)
    return found["metadata"]["resourceVersion"] if found else None


def test_only_newer_versions_are_news() -> None:
    cache = Cache()
    assert cache.put(body(9))
    assert not cache.put(body(9))
    assert not cache.put(body(8))
    assert cache.put(body(10))  # as a number: "10" sorts before "9" as text
    assert version(cache) == "10"


def test_an_answer_that_comes_after_the_deletion_does_not_bring_it_back() -> None:
    cache = Cache()
    cache.put(body(1))
    cache.drop(body(3))
    assert not cache.put(body(2))
    assert version(cache) is None
    assert cache.put(body(4))


def test_a_deletion_of_a_predecessor_leaves_its_namesake() -> None:
    cache = Cache()
    cache.put(body(5))
    cache.drop(body(4))
    assert version(cache) == "5"


def test_a_list_removes_what_it_does_not_have_in_this_pool_only() -> None:
    cache = Cache()
    for child in (body(1), body(1, name="b"), body(1, name="c", pool="other"), body(1, namespace="else")):
        cache.put(child)
    cache.replace("team", "demo", [body(2, name="b")])
    assert version(cache) is None
    assert [child["metadata"]["name"] for child in cache.children("team", "demo")] == ["b"]
    assert len(cache.children("team", "other")) == len(cache.children("else", "demo")) == 1


def test_a_forgotten_pool_may_come_back() -> None:
    cache = Cache()
    cache.put(body(1))
    cache.drop(body(7))
    cache.forget("team", "demo")
    assert cache.put(body(2))


def test_managed_fields_are_not_kept() -> None:
    cache = Cache()
    cache.put(body(1))
    found = cache.get(KEY)
    assert found is not None
    assert "managedFields" not in found["metadata"]


def test_the_owner_is_the_controller() -> None:
    owners = [{"uid": "x"}, {"uid": "y", "controller": True}]
    assert owner_uid({"metadata": {"ownerReferences": owners}}) == "y"
    assert owner_uid({"metadata": {}}) is None
