"""The children of a pool as a whole: which there are, that they are stable, and that secrets stay in Secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.config import parse
from kvpool_operator.api import Settings, parse_spec
from kvpool_operator.desired import Manifest, Material, Pool, desired, names

from ..conftest import MakePool

QUICKSTART = """
model: {name: HuggingFaceTB/SmolLM2-135M-Instruct}
backend: {type: Redis, memory: 2Gi}
tiers: {cpu: {size: 1Gi}}
engines: [{replicas: 2}]
"""


def heads(manifests: list[Manifest]) -> list[str]:
    return [f"{manifest['kind']} {manifest['metadata']['name']}" for manifest in manifests]


def test_the_quickstart_has_these_children(make_pool: MakePool) -> None:
    assert heads(desired(make_pool(QUICKSTART))) == [
        "Secret demo-store-auth",
        "Secret demo-store-users",
        "Secret demo-hash-seed",
        "ConfigMap demo-store",
        "ConfigMap demo-connector",
        "NetworkPolicy demo-store",
        "Service demo-store",
        "Service demo-engine",
        "Deployment demo-store",
        "Deployment demo-engine",
    ]


def test_an_external_store_has_no_children(make_pool: MakePool) -> None:
    spec = "{model: {name: m}, backend: {type: Redis, external: {host: redis.example}}, engines: [{}]}"
    assert heads(desired(make_pool(spec))) == [
        "Secret demo-hash-seed",
        "ConfigMap demo-connector",
        "Service demo-engine",
        "Deployment demo-engine",
    ]


def test_a_tier_alone_has_no_store(make_pool: MakePool) -> None:
    assert heads(desired(make_pool("{tiers: {cpu: {size: 1Gi}}}"))) == [
        "Secret demo-hash-seed",
        "ConfigMap demo-connector",
    ]


def test_every_child_belongs_to_the_pool_and_can_be_selected(make_pool: MakePool) -> None:
    for manifest in desired(make_pool(QUICKSTART)):
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "team"
        assert metadata["labels"][names.MANAGED_BY_LABEL] == "kvpool-operator"
        assert metadata["labels"][names.POOL_LABEL] == "demo"
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == (
            "KVCachePool",
            "demo",
            "pool-uid",
            True,
        )


def test_no_object_is_called_vllm(make_pool: MakePool) -> None:
    """A Service called vllm puts VLLM_PORT=tcp://... into Pods, which vLLM refuses."""
    for manifest in desired(make_pool("{backend: {}, model: {name: m}, engines: [{name: vllm}]}")):
        assert manifest["metadata"]["name"] != "vllm"
        if manifest["kind"] == "Deployment":
            assert manifest["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_password_is_in_one_secret_and_nowhere_else(make_pool: MakePool) -> None:
    manifests = desired(make_pool(QUICKSTART, store_password="canary-password"))
    elsewhere = [m for m in manifests if m["metadata"]["name"] != "demo-store-auth"]
    assert "canary-password" not in json.dumps(elsewhere)
    assert "canary-password" not in repr(make_pool(QUICKSTART))


def test_the_seed_is_in_one_secret_and_nowhere_else(make_pool: MakePool) -> None:
    manifests = desired(make_pool(QUICKSTART, hash_seed="4040404040"))
    elsewhere = [m for m in manifests if m["metadata"]["name"] != "demo-hash-seed"]
    assert "4040404040" not in json.dumps(elsewhere)


def pods_of(manifests: list[Manifest]) -> list[dict[str, Any]]:
    return [m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment"]


def test_pods_pass_pod_security_restricted(make_pool: MakePool) -> None:
    pods = pods_of(desired(make_pool(QUICKSTART)))
    assert len(pods) == 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all({"configMap", "downwardAPI", "secret", "emptyDir"} & volume.keys() for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container["ports"])


@pytest.mark.parametrize(
    "change",
    [
        "tiers: {cpu: {size: 2Gi}}",
        "backend: {type: Valkey, memory: 2Gi}",
        "isolation: {tenant: blue}",
        "connector: {timeouts: {lookupMs: 99}}",
    ],
)
def test_a_new_configuration_makes_new_engine_pods(make_pool: MakePool, change: str) -> None:
    assert hash_of(make_pool(QUICKSTART)) != hash_of(
        make_pool({**yaml.safe_load(QUICKSTART), **yaml.safe_load(change)})
    )


@pytest.mark.parametrize(("connector", "is_kept"), [("KVPool", False), ("LMCache", True)])
def test_a_new_password_is_for_programs_that_keep_it(make_pool: MakePool, connector: str, is_kept: bool) -> None:
    """The store takes over who may log in while it runs, and kvpool reads the password at each connection."""
    spec = yaml.safe_load(QUICKSTART) | {"connector": {"type": connector}, "engines": [{"gpus": 1}]}
    before = desired(make_pool(spec, store_secret_uid="one"))
    after = desired(make_pool(spec, store_secret_uid="two"))
    assert template_annotations(before, "demo-store") == template_annotations(after, "demo-store")
    is_same = template_annotations(before, "demo-engine") == template_annotations(after, "demo-engine")
    assert is_same is not is_kept


def test_what_engines_do_not_read_leaves_them_alone(make_pool: MakePool) -> None:
    other = yaml.safe_load(QUICKSTART) | {"backend": {"type": "Redis", "memory": "8Gi"}}
    assert hash_of(make_pool(QUICKSTART)) == hash_of(make_pool(other))


def template_annotations(manifests: list[Manifest], name: str) -> dict[str, str]:
    (found,) = [m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"] == name]
    wanted: dict[str, str] = found["spec"]["template"]["metadata"]["annotations"]
    return wanted


def hash_of(pool: Pool) -> dict[str, str]:
    return template_annotations(desired(pool), "demo-engine")


@given(
    st.fixed_dictionaries(
        {"backend": st.fixed_dictionaries({"type": st.sampled_from(["Redis", "Valkey"])})},
        optional={
            "tiers": st.just({"cpu": {"size": "1Gi"}}),
            "model": st.just({"name": "org/model", "revision": "main"}),
            "isolation": st.fixed_dictionaries({"tenant": st.from_regex(r"[A-Za-z0-9._-]{0,20}", fullmatch=True)}),
            "connector": st.fixed_dictionaries(
                {},
                optional={
                    "ttlSeconds": st.integers(1, 1000),
                    "timeouts": st.fixed_dictionaries({"fetchMs": st.integers(10, 120_000)}),
                },
            ),
        },
    )
)
def test_the_connector_accepts_every_configuration_that_is_rendered(spec: dict[str, Any]) -> None:
    pool = Pool("demo", "team", "uid", parse_spec(spec), Material("p", "1"), Settings())
    (config,) = [m for m in desired(pool) if m["metadata"]["name"] == "demo-connector"]
    assert parse(yaml.safe_load(config["data"]["kvpool.yaml"]), "test").pool is not None
    assert desired(pool) == desired(pool)
