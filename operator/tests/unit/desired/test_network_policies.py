"""The NetworkPolicies of all that kvpool runs beside engines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kvpool_operator.desired import Manifest, Pool, desired, engines
from kvpool_operator.desired.names import consumer_value

from ..conftest import MakePool

CONSUMER = {"podSelector": {"matchLabels": {"kvpool.dev/consumer": "team.demo"}}}
WEB = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "web"}}}
CLIENTS = [{"podSelector": {"matchLabels": {"kvpool.dev/pool": "demo"}}}, CONSUMER, {**WEB, **CONSUMER}]
OPERATOR = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kvpool-system"}}}

Rules = list[tuple[list[dict[str, Any]], list[int | tuple[int, int]]]]


def servers(component: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": {"kvpool.dev/pool": "demo", "app.kubernetes.io/component": component}}}


REDIS: dict[str, Rules] = {"demo-store": [(CLIENTS, [6379])]}
MASTER: Rules = [(CLIENTS, [50051]), ([OPERATOR, servers("store")], [9003])]
MOONCAKE: dict[str, Rules] = {
    "demo-master": MASTER,
    "demo-store": [(CLIENTS, [(12300, 12309), (15000, 15019)]), ([OPERATOR], [9300])],
}
ETCD: dict[str, Rules] = {"demo-etcd": [(CLIENTS, [2379]), ([servers("etcd")], [2380])]}
INFINISTORE = {
    "type": "InfiniStore",
    "image": "i",
    "infinistore": {"experimental": True, "rdmaResource": "rdma/hca"},
}
MULTIPROCESS = {"connector": {"type": "LMCacheMP"}, "tiers": {"cpu": {"size": "1Gi"}}}

POLICIES: dict[str, tuple[dict[str, Any], dict[str, Rules]]] = {
    "Redis": ({"backend": {"type": "Redis"}}, REDIS),
    "Valkey": ({"backend": {"type": "Valkey"}}, REDIS),
    "Sentinel": ({"backend": {"mode": "Sentinel"}}, {**REDIS, "demo-sentinel": [(CLIENTS, [26379])]}),
    "Mooncake": ({"backend": {"type": "Mooncake"}}, MOONCAKE),
    "MooncakeHA": ({"backend": {"type": "Mooncake", "mooncake": {"ha": True}}}, {**MOONCAKE, **ETCD}),
    "LMCacheServer": ({"backend": {"type": "LMCacheServer"}}, {"demo-store": [(CLIENTS, [65432])]}),
    "InfiniStore": (
        {"backend": INFINISTORE},
        {"demo-store": [(CLIENTS, [22345]), ([OPERATOR], [18080])]},
    ),
    "LMCacheMP": (
        {**MULTIPROCESS, "backend": {"type": "Redis"}},
        {**REDIS, "demo-lmcache": [(CLIENTS, [5555])]},
    ),
    "External": ({"backend": {"type": "Redis", "external": {"host": "h"}}}, {}),
    "None": ({"tiers": {"cpu": {"size": "1Gi"}}}, {}),
}


def policies(pool: Pool) -> Iterator[Manifest]:
    return (manifest for manifest in desired(pool) if manifest["kind"] == "NetworkPolicy")


def rules(policy: Manifest) -> Rules:
    return [
        (
            rule["from"],
            [(port["port"], port["endPort"]) if "endPort" in port else port["port"] for port in rule["ports"]],
        )
        for rule in policy["spec"]["ingress"]
    ]


@pytest.fixture(params=POLICIES)
def case(request: pytest.FixtureRequest, make_pool: MakePool) -> tuple[Pool, dict[str, Rules]]:
    spec, expected = POLICIES[request.param]
    further = {"model": {"name": "m"}, "engines": [{}], "injection": {"allowedNamespaces": ["web"]}}
    return make_pool({**spec, **further}, group_password="g"), expected


def test_rules(case: tuple[Pool, dict[str, Rules]]) -> None:
    pool, expected = case
    assert {policy["metadata"]["name"]: rules(policy) for policy in policies(pool)} == expected


def test_every_server_is_selected(case: tuple[Pool, dict[str, Rules]]) -> None:
    pool, _ = case
    selected = [policy["spec"]["podSelector"]["matchLabels"] for policy in policies(pool)]
    for manifest in desired(pool):
        labels = manifest["spec"].get("template", {}).get("metadata", {}).get("labels") if "spec" in manifest else None
        if labels is None or labels["app.kubernetes.io/component"] == engines.COMPONENT:
            continue
        assert any(wanted.items() <= labels.items() for wanted in selected), manifest["metadata"]["name"]


def let_in(pool: Pool) -> set[str]:
    """Return the values of the label that let Pods of users in."""
    sources = [source for policy in policies(pool) for sources, _ in rules(policy) for source in sources]
    labels = [source["podSelector"]["matchLabels"] for source in sources if "podSelector" in source]
    return {found["kvpool.dev/consumer"] for found in labels if "kvpool.dev/consumer" in found}


def test_consumers_of_a_namesake_are_kept_out(make_pool: MakePool) -> None:
    """A Pod may use a pool of another namespace where a pool of the same name is its neighbour."""
    pool = make_pool({"backend": {"type": "Redis"}, "injection": {"allowedNamespaces": ["web"]}})
    assert let_in(pool) == {consumer_value("team", "demo")}
    assert let_in(dataclasses.replace(pool, namespace="web")) == {consumer_value("web", "demo")}


def test_a_consumers_label_names_one_pool() -> None:
    """Names of pools and namespaces have no dot, and a digest has none either."""
    keys = [("team", "demo"), ("team-demo", "x"), ("team", "demo-x"), ("n" * 63, "a"), ("n" * 63, "b"), ("a", "b.c")]
    values = [consumer_value(*key) for key in keys]
    assert len(set(values)) == len(keys)
    assert values[0] == "team.demo"
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", value) for value in values)
    assert ["." in value for value in values] == [True, True, True, False, False, False]


def test_egress_is_left_open(case: tuple[Pool, dict[str, Rules]]) -> None:
    pool, _ = case
    assert all(policy["spec"]["policyTypes"] == ["Ingress"] for policy in policies(pool))
