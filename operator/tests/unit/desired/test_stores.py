"""Manifests of the stores of several parts, and how engines are told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvpool_connector.config import ConnectorConfig, parse
from kvpool_operator.api import parse_spec
from kvpool_operator.desired import Manifest, Pool, connector_config, desired, stores
from kvpool_operator.desired.stores import etcd, mooncake, redis, sentinel

from ..conftest import MakePool

EXAMPLES = sorted((Path(__file__).parents[4] / "examples" / "stores").glob("*.yaml"))


def found(pool: Pool, kind: str, name: str) -> Manifest:
    (one,) = [m for m in desired(pool) if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return one


def only_container(workload: Manifest) -> dict[str, Any]:
    (one,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


def read(pool: Pool) -> ConnectorConfig:
    return parse(yaml.safe_load(connector_config.text(pool)), "test")


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_connector_takes_the_configuration_of_every_example(make_pool: MakePool, path: Path) -> None:
    pool = make_pool(yaml.safe_load(path.read_text())["spec"], group_password="canary-group")
    assert read(pool).pool is not None
    assert desired(pool) == desired(pool)
    public = json.dumps([manifest for manifest in desired(pool) if manifest["kind"] != "Secret"])
    assert "canary" not in public


@pytest.mark.parametrize("kind", ["Redis", "Valkey", "Mooncake", "LMCacheServer"])
def test_the_type_alone_changes_the_store(make_pool: MakePool, kind: str) -> None:
    pool = make_pool({"backend": {"type": kind, "memory": "2Gi"}})
    remote = read(pool).remote
    assert remote is not None
    assert remote.type == ("lmcache" if kind == "LMCacheServer" else kind.lower())
    assert stores.workloads(pool)


def test_a_group_has_three_servers_and_three_sentinels_with_budgets(make_pool: MakePool) -> None:
    pool = make_pool("{backend: {type: Redis, mode: Sentinel}}", group_password="g")
    assert [(one.name, one.replicas, one.needed) for one in stores.workloads(pool)] == [
        ("demo-store", 3, 1),
        ("demo-sentinel", 3, 2),
    ]
    for name in ("demo-store", "demo-sentinel"):
        assert found(pool, "PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1
        spread = found(pool, "StatefulSet", name)["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
        assert list(spread) == ["preferredDuringSchedulingIgnoredDuringExecution"]
    for name in ("demo-members", "demo-sentinel"):
        service = found(pool, "Service", name)["spec"]
        assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    files = found(pool, "ConfigMap", "demo-store")["data"]
    assert "down-after-milliseconds kvpool 5000" in files["start-sentinel.sh"]
    assert 'echo "demo-store-0.demo-members.team.svc.cluster.local"' in files["group.sh"]
    assert f"maxmemory {redis.max_memory('1Gi', in_group=True)}\n" in files["redis.conf"]


@pytest.mark.parametrize(("timeout_s", "least_s"), [(10, 300), (3600, 2 * 3600 + 300)])
def test_a_server_of_a_group_may_wait_for_another_primary_before_it_begins(
    make_pool: MakePool, timeout_s: int, least_s: int
) -> None:
    spec = f"{{backend: {{mode: Sentinel, sentinel: {{failoverTimeoutSeconds: {timeout_s}}}}}}}"
    pool = make_pool(spec, group_password="g")
    template = found(pool, "StatefulSet", "demo-store")["spec"]["template"]["spec"]
    probe = template["containers"][0]["startupProbe"]
    assert probe["exec"]["command"] == ["sh", f"{redis.CONFIG_DIRECTORY}/known.sh"]
    assert probe["failureThreshold"] * probe["periodSeconds"] > least_s


def test_engines_ask_all_sentinels_as_their_own_user(make_pool: MakePool) -> None:
    remote = read(make_pool("{backend: {mode: Sentinel}}", group_password="g")).remote
    assert remote is not None
    assert remote.type == "valkey"
    assert remote.sentinel is not None
    assert (remote.sentinel.master_name, len(remote.sentinel.endpoints)) == ("kvpool", 3)
    assert (remote.sentinel.username, remote.sentinel.password_file) == ("kvpool", "/etc/kvpool-store/password")
    assert str(remote.sentinel.endpoints[0]) == "demo-sentinel-0.demo-sentinel.team.svc.cluster.local:26379"


def test_external_sentinels_have_a_password_of_their_own(make_pool: MakePool) -> None:
    spec = yaml.safe_load("""
    model: {name: m}
    engines: [{}]
    backend:
      type: Redis
      external:
        database: 2
        sentinel: {masterName: prime, endpoints: [{host: a}, {host: b, port: 7}], auth: {secretRef: {name: s1}}}
        auth: {secretRef: {name: s2, passwordKey: word}}
    """)
    pool = make_pool(spec, sentinel_username="eve")
    remote = read(pool).remote
    assert remote is not None
    assert remote.type == "redis"
    assert remote.sentinel is not None
    assert [str(endpoint) for endpoint in remote.sentinel.endpoints] == ["a:26379", "b:7"]
    assert (remote.sentinel.username, remote.sentinel.password_file) == ("eve", "/etc/kvpool-sentinel/password")
    assert (remote.username, remote.password_file, remote.database) == (None, "/etc/kvpool-store/password", 2)
    volumes = found(pool, "Deployment", "demo-engine")["spec"]["template"]["spec"]["volumes"]
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    assert secrets == {"store-auth": "s2", "sentinel-auth": "s1"}


def test_files_of_users_have_digests_only() -> None:
    for text in (redis.acl("word-1", "word-2"), sentinel.acl("word-1", "word-2")):
        assert "word-" not in text
        assert text.startswith("user default off\n")


def test_mooncakes_administration_is_open_to_the_operators_namespace_and_to_stores_only(make_pool: MakePool) -> None:
    granted = "{backend: {type: Mooncake}, injection: {allowedNamespaces: [web]}}"
    pool = make_pool(granted, settings={"namespace": "ops"})
    rules = found(pool, "NetworkPolicy", "demo-master")["spec"]["ingress"]
    (admin,) = [rule for rule in rules if {"protocol": "TCP", "port": mooncake.ADMIN_PORT} in rule["ports"]]
    stores = found(pool, "StatefulSet", "demo-store")["spec"]["selector"]
    assert admin["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ops"}}}, {"podSelector": stores},
    ]  # fmt: skip
    store = found(pool, "NetworkPolicy", "demo-store")["spec"]["ingress"][0]
    consumers = {"podSelector": {"matchLabels": {"kvpool.dev/consumer": "team.demo"}}}
    web = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "web"}}}
    assert store["from"] == [
        {"podSelector": {"matchLabels": {"kvpool.dev/pool": "demo"}}},
        consumers,
        {**web, **consumers},
    ]
    assert {"protocol": "TCP", "port": 15000, "endPort": 15019} in store["ports"]


@pytest.mark.parametrize(
    ("memory", "segment"), [("256Mi", 128), ("1Gi", 800), ("80Gi", 71152)], ids=["256Mi", "1Gi", "80Gi"]
)
def test_a_segment_is_below_the_memory_limit_by_buffers_and_15_percent(memory: str, segment: int) -> None:
    assert mooncake.segment_bytes(memory) == segment << 20


def test_masters_of_several_find_each_other_through_etcd(make_pool: MakePool) -> None:
    pool = make_pool("{backend: {type: Mooncake, mooncake: {ha: true}}}")
    masters = found(pool, "Deployment", "demo-master")["spec"]
    assert (masters["replicas"], masters["strategy"]["type"]) == (3, "RollingUpdate")
    config = yaml.safe_load(found(pool, "ConfigMap", "demo-master")["data"]["master.yaml"])
    assert (config["enable_ha"], config["enable_oplog"]) == (True, True)
    assert config["etcd_endpoints"].split(";") == list(etcd.endpoints(pool))
    remote = read(pool).remote
    assert remote is not None
    assert remote.type == "mooncake"
    assert remote.master == "etcd://" + config["etcd_endpoints"]
    assert remote.metadata_server == "P2PHANDSHAKE"


def test_a_lone_master_ends_before_its_successor_starts(make_pool: MakePool) -> None:
    pool = make_pool("{backend: {type: Mooncake}}")
    masters = found(pool, "Deployment", "demo-master")["spec"]
    assert (masters["replicas"], masters["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize(
    ("change", "rolled"),
    [({"memory": "4Gi"}, ["demo-store"]), ({"mooncake": {"ha": True}}, ["demo-master", "demo-store"])],
    ids=["memory", "ha"],
)
def test_a_new_configuration_rolls_what_reads_it(
    make_pool: MakePool, change: dict[str, Any], rolled: list[str]
) -> None:
    def hashes(pool: Pool) -> dict[str, str]:
        return {
            m["metadata"]["name"]: m["spec"]["template"]["metadata"]["annotations"]["kvpool.dev/config-hash"]
            for m in stores.build(pool)
            if m["kind"] in ("Deployment", "StatefulSet") and m["metadata"]["name"] != "demo-etcd"
        }

    before = hashes(make_pool("{backend: {type: Mooncake}}"))
    after = hashes(make_pool({"backend": {"type": "Mooncake", **change}}))
    assert sorted(name for name in before if before[name] != after[name]) == rolled


def test_rdma_reaches_stores_and_engines(make_pool: MakePool) -> None:
    rdma = {"resource": "rdma/hca", "devices": "mlx5_0"}
    backend = {"type": "Mooncake", "mooncake": {"protocol": "RDMA", "rdma": rdma}}
    pool = make_pool({"model": {"name": "m"}, "engines": [{}], "backend": backend})
    for kind, name in (("StatefulSet", "demo-store"), ("Deployment", "demo-engine")):
        container = only_container(found(pool, kind, name))
        assert container["resources"]["limits"]["rdma/hca"] == 1
        assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    remote = read(pool).remote
    assert remote is not None
    assert remote.type == "mooncake"
    assert (remote.protocol, remote.devices) == ("rdma", "mlx5_0")


def test_etcd_has_a_quota_below_its_volume_and_forgets_old_versions(make_pool: MakePool) -> None:
    backend = {"type": "Mooncake", "mooncake": {"ha": True}, "etcd": {"storage": "4Gi", "storageClassName": "fast"}}
    workload = found(make_pool({"backend": backend}), "StatefulSet", "demo-etcd")
    flags = only_container(workload)["args"]
    assert f"--quota-backend-bytes={int((4 << 30) * 0.8)}" in flags
    assert "--auto-compaction-retention=10m" in flags
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"] == {"requests": {"storage": "4Gi"}}


def test_an_external_etcd_is_used_and_not_run(make_pool: MakePool) -> None:
    backend = {
        "type": "Mooncake",
        "mooncake": {"metadata": "Etcd"},
        "etcd": {"external": {"endpoints": ["a:1", "b:2"]}},
    }
    pool = make_pool({"backend": backend})
    assert "demo-etcd" not in {m["metadata"]["name"] for m in desired(pool)}
    remote = read(pool).remote
    assert remote is not None
    assert remote.type == "mooncake"
    assert remote.metadata_server == "etcd://a:1;b:2"


def test_infinistore_asks_for_what_it_needs(make_pool: MakePool) -> None:
    own = {"experimental": True, "rdmaResource": "rdma/hca", "device": "mlx5_0"}
    backend = {"type": "InfiniStore", "memory": "16Gi", "image": "i:1", "infinistore": own}
    container = only_container(found(make_pool({"backend": backend}), "Deployment", "demo-store"))
    assert "--prealloc-size=12" in container["command"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK", "SYS_RESOURCE"]}
    assert container["resources"]["limits"]["rdma/hca"] == 1


def disk_pool(make_pool: MakePool, **volume: Any) -> Pool:
    tiers = {"disk": {"size": "10Gi", "evictionPolicy": "SLRU", "writePolicy": "Selective", **volume}}
    return make_pool({"model": {"name": "m"}, "engines": [{"replicas": 2}], "tiers": tiers})


def test_a_disk_that_outlives_pods_makes_engines_a_stateful_set(make_pool: MakePool) -> None:
    pool = disk_pool(make_pool, volume={"persistentVolumeClaim": {}})
    workload = found(pool, "StatefulSet", "demo-engine")
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "11328Mi"
    assert {"name": "kvpool-disk", "mountPath": "/var/lib/kvpool"} in only_container(workload)["volumeMounts"]
    disk = read(pool).tiers.disk
    assert disk is not None
    assert (disk.path, disk.size, disk.eviction_policy, disk.write_policy) == (
        "/var/lib/kvpool", 10 << 30, "slru", "selective",
    )  # fmt: skip


def test_each_replica_has_a_folder_of_its_own_in_a_shared_claim(make_pool: MakePool) -> None:
    workload = found(
        disk_pool(make_pool, volume={"persistentVolumeClaim": {"claimName": "c"}}), "StatefulSet", "demo-engine"
    )
    container = only_container(workload)
    mount = {"name": "kvpool-disk", "mountPath": "/var/lib/kvpool", "subPathExpr": "$(POD_NAME)"}
    assert mount in container["volumeMounts"]
    assert "POD_NAME" in {variable["name"] for variable in container["env"]}
    assert "volumeClaimTemplates" not in workload["spec"]


@pytest.mark.parametrize("volume", [{}, {"volume": {"emptyDir": {}}}])
def test_a_disk_that_ends_with_the_pod(make_pool: MakePool, volume: dict[str, Any]) -> None:
    workload = found(disk_pool(make_pool, **volume), "Deployment", "demo-engine")
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    assert {"name": "kvpool-disk", "emptyDir": {"sizeLimit": "11328Mi"}} in volumes


def test_a_path_is_the_users_affair(make_pool: MakePool) -> None:
    pool = disk_pool(make_pool, path="/data")
    disk = read(pool).tiers.disk
    assert disk is not None
    assert disk.path == "/data"
    assert "kvpool-disk" not in json.dumps(desired(pool))


def test_the_connectors_settings_reach_its_file(make_pool: MakePool) -> None:
    connector = {"chunkTokens": 64, "admission": "Always", "verifyOneIn": 9, "onFailure": "Continue"}
    spec = {
        "backend": {"writePolicy": "WriteBack"},
        "connector": connector,
        "tiers": {"cpu": {"size": "1Gi", "evictionPolicy": "SLRU"}},
    }
    config = read(make_pool(spec))
    assert (config.chunk_tokens, config.admission, config.verify_one_in) == (64, "always", 9)
    assert (config.on_failure, config.tiers.cpu.eviction_policy) == ("continue", "slru")
    assert config.remote is not None
    assert config.remote.write_policy == "write_back"


def test_every_example_says_what_it_is() -> None:
    for path in EXAMPLES:
        text = path.read_text()
        assert text.startswith("# ")
        body = yaml.safe_load(text)
        assert body["metadata"]["name"] == path.stem
        parse_spec(body["spec"])
