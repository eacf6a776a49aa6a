"""What vLLM is told for each type of connector, transport and role."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from kvpool_connector.config import ConfigError, parse
from kvpool_operator.desired import Manifest, Pool, desired
from kvpool_operator.desired.connectors import lmcache

from ..conftest import MakePool

GPU = {"gpus": 1}
STORE = {"type": "Redis"}


def spec(connector: dict[str, Any], *engines: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {"model": {"name": "m"}, "connector": connector, "engines": list(engines), **further}


def workload(pool: Pool, name: str = "engine") -> Manifest:
    found: Manifest = next(
        manifest
        for manifest in desired(pool)
        if (manifest["kind"], manifest["metadata"]["name"]) == ("Deployment", f"demo-{name}")
    )
    return found


def container(pool: Pool, name: str = "engine") -> Manifest:
    only: Manifest = workload(pool, name)["spec"]["template"]["spec"]["containers"][0]
    return only


def transfer(pool: Pool, name: str = "engine") -> dict[str, Any]:
    arguments = container(pool, name)["args"]
    found: dict[str, Any] = json.loads(arguments[arguments.index("--kv-transfer-config") + 1])
    return found


def environment(pool: Pool, name: str = "engine") -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(pool, name)["env"]}


def kinds(pool: Pool) -> set[str]:
    return {f"{manifest['kind']} {manifest['metadata']['name']}" for manifest in desired(pool)}


def test_prefill_and_decode_meet_in_the_store(make_pool: MakePool) -> None:
    roles: list[dict[str, Any]] = [{"name": "p", "role": "Prefill"}, {"name": "d", "role": "Decode"}, {"name": "b"}]
    pool = make_pool(spec({}, *roles, backend=STORE))
    assert [transfer(pool, name)["kv_role"] for name in "pd"] == ["kv_producer", "kv_consumer"]
    assert {transfer(pool, name)["kv_connector"] for name in "pd"} == {"KVPoolConnector"}
    assert "--kv-transfer-config" not in container(pool, "b")["args"], "the environment switches it on"
    assert environment(pool, "b")["KVPOOL_CONFIG_FILE"] == environment(pool, "p")["KVPOOL_CONFIG_FILE"]


def test_nixl_comes_behind_the_pool(make_pool: MakePool) -> None:
    roles: list[dict[str, Any]] = [{"name": "p", "role": "Prefill", "gpus": 1}, {"name": "d", "role": "Decode"}]
    pool = make_pool(spec({"transport": "NIXL"}, *roles, backend=STORE))
    for name, role, gpus in (("p", "kv_producer", 1), ("d", "kv_consumer", 0)):
        multi = transfer(pool, name)
        assert (multi["kv_connector"], multi["kv_role"]) == ("MultiConnector", role)
        first, second = multi["kv_connector_extra_config"]["connectors"]
        assert (first["kv_connector"], first["kv_role"]) == ("KVPoolConnector", "kv_both")
        assert (second["kv_connector"], second["kv_role"]) == ("NixlConnector", role)
        assert ("kv_buffer_device" in second) == (gpus == 0)
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        assert environment(pool, name)["VLLM_NIXL_SIDE_CHANNEL_HOST"] == address


def test_lmcache_reads_its_own_file(make_pool: MakePool) -> None:
    pool = make_pool(spec({"type": "LMCache"}, GPU, backend=STORE, tiers={"cpu": {"size": "3Gi"}}))
    assert transfer(pool)["kv_connector"] == "LMCacheConnectorV1"
    config = next(m for m in desired(pool) if m["metadata"]["name"] == "demo-connector")
    assert set(config["data"]) == {"lmcache-config.yaml"}
    content = yaml.safe_load(config["data"]["lmcache-config.yaml"])
    assert content["remote_url"] == "resp://demo-store.team.svc.cluster.local:6379"
    assert content["max_local_cpu_size"] == 3
    variables = environment(pool)
    assert variables["LMCACHE_CONFIG_FILE"] == "/etc/kvpool/lmcache-config.yaml"
    assert variables["LMCACHE_RESP_USERNAME"] == "kvpool"
    assert variables["LMCACHE_RESP_PASSWORD"] == {"secretKeyRef": {"name": "demo-store-auth", "key": "password"}}
    assert "KVPOOL_CONFIG_FILE" not in variables


@pytest.mark.parametrize(
    ("remote", "says"),
    [
        ({"host": "h", "database": 2, "password_file": "/p"}, "spec.backend.external.database"),
        (
            {"sentinel": {"master_name": "m", "endpoints": [{"host": "s", "port": 1}]}, "password_file": "/p"},
            "Sentinel",
        ),
    ],
)
def test_lmcache_would_show_a_password_or_lose_a_setting(remote: dict[str, Any], says: str) -> None:
    config = parse({"tiers": {"cpu": {"size": "1Gi"}}, "remote": {"type": "redis", **remote}}, "test")
    with pytest.raises(ConfigError, match=says):
        lmcache.text(config)


def test_lmcache_has_a_server_on_each_node(make_pool: MakePool) -> None:
    server = {"image": "i", "podTemplate": {"spec": {"nodeSelector": {"gpu": "yes"}}}}
    pool = make_pool(
        spec({"type": "LMCacheMP", "server": server}, {}, backend=STORE, tiers={"cpu": {"size": "1536Mi"}})
    )
    assert {"DaemonSet demo-lmcache", "Service demo-lmcache"} <= kinds(pool)
    assert "ConfigMap demo-connector" not in kinds(pool)
    made = {m["kind"]: m for m in desired(pool) if m["metadata"]["name"] == "demo-lmcache"}
    assert made["Service"]["spec"]["internalTrafficPolicy"] == "Local"
    pod = made["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "yes"}
    (one,) = pod["containers"]
    assert one["image"] == "i"
    arguments = one["args"]
    assert arguments[arguments.index("--l1-size-gb") + 1] == "1.5"
    assert arguments[arguments.index("--supported-transfer-mode") + 1] == "engine_driven"
    adapter = json.loads(arguments[arguments.index("--l2-adapter") + 1])
    assert adapter == {"type": "resp", "host": "demo-store.team.svc.cluster.local", "port": 6379}
    assert {variable["name"] for variable in one["env"]} >= {"LMCACHE_RESP_USERNAME", "LMCACHE_RESP_PASSWORD"}
    assert transfer(pool)["kv_connector_extra_config"] == {
        "lmcache.mp.host": "tcp://demo-lmcache.team.svc.cluster.local", "lmcache.mp.port": 5555,
    }  # fmt: skip


def test_native_has_the_size_of_the_tier_and_no_file(make_pool: MakePool) -> None:
    pool = make_pool(spec({"type": "Native"}, GPU, tiers={"cpu": {"size": "2Gi"}}))
    assert transfer(pool)["kv_connector_extra_config"] == {"cpu_bytes_to_use": 2 << 30}
    assert kinds(pool) == {"Secret demo-hash-seed", "Service demo-engine", "Deployment demo-engine"}
    pod = workload(pool)["spec"]["template"]["spec"]
    assert "config" not in {volume["name"] for volume in pod["volumes"]}
    assert "config" not in {mount["name"] for mount in container(pool)["volumeMounts"]}
