"""From a pool to what a Pod gets of it, or why it gets nothing."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.api import Delivery, Settings
from kvpool_operator.desired import desired, grants
from kvpool_operator.injection import facts
from kvpool_operator.injection.facts import Facts
from kvpool_operator.injection.names import BadReference, pool_key
from kvpool_operator.injection.outcome import Skip
from kvpool_operator.status.fold import build_status
from kvpool_operator.status.observed import Observed, Refusal

from ..conftest import MakePool

MANAGED: dict[str, Any] = {"backend": {"type": "Redis"}, "tiers": {"cpu": {"size": "1Gi"}}}
EXTERNAL: dict[str, Any] = {"backend": {"type": "Redis", "external": {"host": "h"}}}
WITH_PASSWORD: dict[str, Any] = {
    "backend": {"type": "Redis", "external": {"host": "h", "auth": {"secretRef": {"name": "mine"}}}}
}


def body(spec: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {"metadata": {"name": "demo", "namespace": "team", "uid": "u", **further}, "spec": spec}


def gather(spec: dict[str, Any] | None, namespace: str = "team", *, there: bool = True, **further: Any) -> Facts:
    pool = None if spec is None else {**body(spec), **further}
    return facts.gather(("team", "demo"), pool, namespace, Settings(), lambda *_: there)


def test_of_a_pool_in_the_same_namespace() -> None:
    found = gather(MANAGED, status={"config": {"hash": "h1"}})
    assert (found.config_map, found.seed_secret) == ("demo-connector", "demo-hash-seed")
    assert found.password == ("demo-store-auth", "password")
    assert (found.cpu_tier, found.mark, found.disk) == (1 << 30, "team/demo@h1", 0)
    assert found.delivery is Delivery.AUTO
    assert gather(EXTERNAL).password is None
    assert gather(WITH_PASSWORD).password == ("mine", "password")


def test_of_a_pool_with_a_disk_tier_and_external_sentinels() -> None:
    group = {"masterName": "m", "endpoints": [{"host": "s"}], "auth": {"secretRef": {"name": "theirs"}}}
    backend = {"type": "Redis", "external": {"sentinel": group}}
    found = gather({"backend": backend, "tiers": {"disk": {"size": "1Gi"}}})
    assert (found.password, found.sentinel_password) == (None, ("theirs", "password"))
    assert found.disk == 1191 << 20
    assert gather({"tiers": {"disk": {"size": "1Gi", "path": "/data"}}}).disk == 0
    with pytest.raises(Skip):
        gather({"backend": backend, "injection": {"allowedNamespaces": ["web"]}}, "web")


def test_of_a_pool_elsewhere_names_of_copies() -> None:
    found = gather({**MANAGED, "injection": {"allowedNamespaces": ["web"], "delivery": "InitContainer"}}, "web")
    assert (found.config_map, found.seed_secret) == ("team.demo-connector", "team.demo-hash-seed")
    assert found.password == ("team.demo-store-auth", "password")
    assert found.delivery is Delivery.INIT_CONTAINER
    assert (found.payload_image, found.engine_image) == ("kvpool/payload:0.1.0", "kvpool/serving:0.1.0")


def test_another_connector_is_not_put_into_pods_of_others() -> None:
    with pytest.raises(Skip, match=r"OtherConnectorType.*set it to KVPool"):
        gather({**MANAGED, "connector": {"type": "LMCache"}})


def test_everything_that_a_pod_mounts_is_looked_for(make_pool: MakePool) -> None:
    asked: list[tuple[str, str, str]] = []

    def look(*key: str) -> bool:
        asked.append((key[0], key[1], key[2]))
        return True

    granted = {**MANAGED, "injection": {"allowedNamespaces": ["web"]}}
    made = {(m["kind"], m["metadata"]["namespace"], m["metadata"]["name"]) for m in desired(make_pool(granted))}
    for namespace in ("team", "web"):
        facts.gather(("team", "demo"), body(granted), namespace, Settings(), look)
    assert len(asked) == 6
    assert set(asked) <= made


@pytest.mark.parametrize(
    ("spec", "namespace", "there", "says"),
    [
        (None, "team", True, "PoolMissing: there is no KVCachePool demo in namespace team"),
        ({**MANAGED, "injection": {"mode": "Off"}}, "team", True, "InjectionOff"),
        (MANAGED, "web", True, "add web to its spec.injection.allowedNamespaces"),
        ({**WITH_PASSWORD, "injection": {"allowedNamespaces": ["web"]}}, "web", True, "SecretNotShared"),
        (MANAGED, "team", False, "PoolNotReady: ConfigMap demo-connector"),
        ({"tiers": {}}, "team", True, "PoolNotReady: pool team/demo can't be used: "),
    ],
)
def test_a_reason(spec: dict[str, Any] | None, namespace: str, there: bool, says: str) -> None:
    with pytest.raises(Skip) as caught:
        gather(spec, namespace, there=there)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("refusing", "says"),
    [
        (("web",), "NamespaceDoesNotAccept: this namespace"),
        (("other", "web"), "NamespaceDoesNotAccept: this namespace"),
        (("other",), "PoolNotReady: ConfigMap"),
        (("web2", "pool"), "PoolNotReady: ConfigMap"),
    ],
    ids=["this one", "this one, too", "another one", "others with like names"],
)
def test_a_namespace_is_blamed_only_if_it_is_the_one_that_refuses(
    make_pool: MakePool, refusing: tuple[str, ...], says: str
) -> None:
    spec = {**MANAGED, "injection": {"allowedNamespaces": ["web", *refusing]}}
    seen = Observed(generation=1, pool=make_pool(spec), unconsenting=refusing)
    with pytest.raises(Skip) as caught:
        gather(spec, "web", there=False, status=build_status(seen, {}, "t"))
    assert str(caught.value).startswith(says)


def test_a_namespace_that_refuses_is_told_whatever_else_is_wrong(make_pool: MakePool) -> None:
    """A condition has one cause in its message, and here it is another one."""
    spec = {**MANAGED, "injection": {"allowedNamespaces": ["web", "other"]}}
    refusal = Refusal("Secret", "team.demo-hash-seed", "a quota", grants.COMPONENT)
    seen = Observed(generation=1, pool=make_pool(spec), unconsenting=("web",), refusals=(refusal,))
    status = build_status(seen, {}, "t")
    assert [one["reason"] for one in status["conditions"] if one["type"] == "InjectionReady"] == ["GrantNotWritten"]
    with pytest.raises(Skip, match="NamespaceDoesNotAccept: this namespace"):
        gather(spec, "web", there=False, status=status)


def test_who_refuses_is_unknown_while_namespaces_were_not_read(make_pool: MakePool) -> None:
    spec = {**MANAGED, "injection": {"allowedNamespaces": ["web"]}}
    seen = Observed(generation=1, pool=make_pool(spec), unconsenting=("web",), consents_known=False)
    with pytest.raises(Skip, match="PoolNotReady: ConfigMap"):
        gather(spec, "web", there=False, status=build_status(seen, {}, "t"))


def test_a_secret_of_the_users_that_is_missing() -> None:
    conditions = [{"type": "BackendAvailable", "reason": "SecretMissing", "message": "Secret mine does not exist"}]
    with pytest.raises(Skip, match="Secret mine does not exist"):
        gather(WITH_PASSWORD, status={"conditions": conditions})


def test_a_pool_that_is_being_deleted_is_none() -> None:
    with pytest.raises(Skip, match="PoolMissing"):
        facts.gather(("team", "demo"), body(MANAGED, deletionTimestamp="t"), "team", Settings(), lambda *_: True)


@pytest.mark.parametrize(
    ("reference", "key"),
    [("demo", ("web", "demo")), ("team/demo", ("team", "demo")), (" demo ", ("web", "demo"))],
)
def test_what_an_annotation_means(reference: str, key: tuple[str, str]) -> None:
    assert pool_key(reference, "web") == key


@pytest.mark.parametrize(
    "reference",
    [
        "/",
        "demo/",
        "/demo",
        "..",
        "team/..",
        "x/../../../../api/v1/secrets",
        "a/b/c",
        "%2e%2e/x",
        "Demo",
        "x\n",
        "y" * 300,
    ],
)
def test_an_annotation_that_can_mean_no_pool(reference: str) -> None:
    """A shorter form of it is in the message, with how to write it."""
    with pytest.raises(BadReference, match="write <name> or <namespace>/<name>") as error:
        pool_key(reference.replace("x\n", "x\ny"), "web")
    assert len(str(error.value)) < 200


def test_copies_hold_no_more_than_pods_need(make_pool: MakePool) -> None:
    pool = make_pool({**MANAGED, "injection": {"allowedNamespaces": ["web", "team"]}})
    made = grants.build(pool)
    assert {m["metadata"]["namespace"] for m in made} == {"web"}
    assert all("ownerReferences" not in m["metadata"] for m in made)
    assert [sorted(m["data"]) for m in made] == [["kvpool.yaml"], ["seed"], ["password"]]


def test_a_new_seed_changes_what_is_compared(make_pool: MakePool) -> None:
    spec = {**MANAGED, "injection": {"allowedNamespaces": ["web"]}}
    one, two = (grants.build(make_pool(spec, seed_secret_uid=uid))[1]["metadata"] for uid in "ab")
    assert one != two
