"""What a Pod looks like afterwards, by kind of container."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from kvpool_connector.config import parse_quantity
from kvpool_operator.desired.connectors.kvpool import KV_TRANSFER
from kvpool_operator.injection.flags import structured
from kvpool_operator.injection.names import SHM_DIRECTORY

from .injected import changed, environment, target
from .pods import KINDS, pod, serve

SEED = {"name": "demo-hash-seed", "key": "seed", "optional": True}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gets_configuration_seed_and_password(kind: str) -> None:
    body = changed(KINDS[kind])
    one = target(body)
    variables = environment(one)
    assert variables["KVPOOL_CONFIG_FILE"] == "/etc/kvpool/kvpool.yaml"
    assert variables["PYTHONHASHSEED"] == {"secretKeyRef": SEED}
    assert variables["KVPOOL_ON_FAILURE"] == "continue"
    mounts = {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
    assert mounts["/etc/kvpool"] == "kvpool-config"
    assert mounts["/etc/kvpool-store"] == "kvpool-store-auth"
    volumes = {volume["name"]: volume for volume in body["spec"]["volumes"]}
    assert volumes["kvpool-config"]["configMap"] == {"name": "demo-connector", "optional": True}
    assert volumes["kvpool-store-auth"]["secret"]["secretName"] == "demo-store-auth"
    assert body["metadata"]["annotations"]["kvpool.dev/injected"] == "team/demo@abc"
    assert body["metadata"]["labels"]["kvpool.dev/consumer"] == "team.demo"
    untouched = [other for other in KINDS[kind]["spec"]["containers"] if other["name"] != one["name"]]
    assert [other for other in body["spec"]["containers"] if other["name"] != one["name"]] == untouched


def test_a_pod_starts_again_when_its_pool_is_gone() -> None:
    """Kubernetes starts no container that mounts or reads what is not there, unless it is optional."""
    body = changed(pod(serve()))
    sources = [
        volume.get("configMap") or volume.get("secret")
        for volume in body["spec"]["volumes"]
        if volume.keys() & {"configMap", "secret"}
    ]
    sources += [
        variable["valueFrom"]["secretKeyRef"]
        for variable in target(body)["env"]
        if "secretKeyRef" in variable.get("valueFrom", {})
    ]
    assert len(sources) == 3
    assert all(source["optional"] for source in sources)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Ray" not in kind and kind != "shell"])
def test_arguments_are_appended_once(kind: str) -> None:
    before, after = target(KINDS[kind]), target(changed(KINDS[kind]))
    arguments = [*before.get("args", ())]
    assert after["args"][: len(arguments)] == arguments
    assert after.get("command") == before.get("command")
    assert after["args"][len(arguments) :: 2] == ["--kv-transfer-config", "--prefix-caching-hash-algo"]
    assert json.loads(after["args"][len(arguments) + 1]) == KV_TRANSFER
    assert KV_TRANSFER["kv_load_failure_policy"] == "recompute"
    assert after["args"][-1] == "sha256_cbor"


def test_a_shell_script_gets_flags_that_survive_two_readings() -> None:
    one = target(changed(KINDS["shell"]))
    assert one["args"] == target(KINDS["shell"])["args"]
    text = environment(one)["VLLM_ADDITIONAL_ARGS"]
    assert not set(text) & set("'\"{}$`\\")
    assert structured(text.split(), "--kv-transfer-config") == KV_TRANSFER
    assert "--prefix-caching-hash-algo sha256_cbor" in text


def test_a_shell_scripts_own_additional_arguments_stay() -> None:
    body = copy.deepcopy(KINDS["shell"])
    body["spec"]["containers"][0]["env"] = [{"name": "VLLM_ADDITIONAL_ARGS", "value": "--max-model-len 512"}]
    assert environment(target(changed(body)))["VLLM_ADDITIONAL_ARGS"].startswith("--max-model-len 512 --kv-transfer")


@pytest.mark.parametrize(
    "fields",
    [
        {"envFrom": [{"prefix": "OTHER_", "configMapRef": {"name": "a"}}]},
        {"envFrom": [{"configMapRef": {"name": "a"}}], "env": [{"name": "VLLM_ADDITIONAL_ARGS", "value": "--x"}]},
    ],
    ids=["another prefix", "env counts"],
)
def test_a_shell_script_whose_variable_no_source_can_hold(fields: dict[str, Any]) -> None:
    body = copy.deepcopy(KINDS["shell"])
    body["spec"]["containers"][0] |= fields
    once = changed(body)
    assert "--kv-transfer-config" in environment(target(once))["VLLM_ADDITIONAL_ARGS"]
    assert changed(once) == once


@pytest.mark.parametrize("kind", ["Ray head", "Ray worker"])
def test_ray_gets_no_arguments(kind: str) -> None:
    before, after = target(KINDS[kind]), target(changed(KINDS[kind]))
    assert (after.get("command"), after["args"]) == (before.get("command"), before["args"])


def test_memory_grows_by_the_tier_where_it_is_set() -> None:
    resources = {"requests": {"memory": "8Gi", "cpu": "1"}, "limits": {"memory": "10240M", "nvidia.com/gpu": 1}}
    after = target(changed(pod(serve(resources=resources))))["resources"]
    assert after["requests"] == {"memory": "12Gi", "cpu": "1"}
    assert after["limits"].pop("nvidia.com/gpu") == 1
    assert parse_quantity(after["limits"]["memory"]) == 10240 * 10**6 + (4 << 30)
    assert target(changed(KINDS["Ray worker"]))["resources"]["limits"]["memory"] == "12Gi"
    assert "resources" not in target(changed(pod(serve())))


@pytest.mark.parametrize(
    ("node", "resources", "memory"),
    [
        ("head", {}, "8Gi"),
        ("head", {"nvidia.com/gpu": "1"}, "8Gi"),
        ("worker", {}, "8Gi"),
        ("worker", {"cpu": "4", "hugepages-2Mi": "1Gi", "rdma/hca": "1"}, "8Gi"),
        ("worker", {"nvidia.com/gpu": 0}, "8Gi"),
        ("worker", {"nvidia.com/gpu": 1}, "12Gi"),
        ("worker", {"google.com/tpu": "4"}, "12Gi"),
    ],
)
def test_memory_of_a_pod_of_ray_grows_where_it_may_run_an_engine(
    node: str, resources: dict[str, Any], memory: str
) -> None:
    body = copy.deepcopy(KINDS["Ray worker"])
    body["metadata"]["labels"]["ray.io/node-type"] = node
    body["spec"]["containers"][0]["resources"] = {"limits": {"memory": "8Gi", **resources}}
    body["spec"]["resources"] = {"limits": {"memory": "8Gi"}}
    after = changed(body)
    assert target(after)["resources"]["limits"] == {"memory": memory, **resources}
    assert after["spec"]["resources"] == {"limits": {"memory": memory}}


def test_memory_of_a_pod_of_ray_with_a_claimed_device_grows() -> None:
    body = copy.deepcopy(KINDS["Ray worker"])
    body["spec"]["containers"][0]["resources"] = {"requests": {"memory": "8Gi"}, "claims": [{"name": "gpu"}]}
    assert target(changed(body))["resources"]["requests"] == {"memory": "12Gi"}


def test_memory_of_the_pod_itself_grows_too() -> None:
    body = pod(serve())
    body["spec"]["resources"] = {"limits": {"memory": "8Gi"}}
    assert changed(body)["spec"]["resources"] == {"limits": {"memory": "12Gi"}}


def test_memory_can_be_kept() -> None:
    keep = {"kvpool.dev/pool": "demo", "kvpool.dev/memory": "keep"}
    resources = {"limits": {"memory": "8Gi"}}
    assert target(changed(pod(serve(resources=resources), annotations=keep)))["resources"] == resources


def test_tensor_parallelism_without_shared_memory_gets_some() -> None:
    for flag in (("--tensor-parallel-size", "2"), ("--tensor_parallel_size=2",), ("-tp", "2")):
        body = changed(pod(serve(*flag)))
        assert {"name": "kvpool-shm", "mountPath": SHM_DIRECTORY} in target(body)["volumeMounts"]
        assert {"name": "kvpool-shm", "emptyDir": {"medium": "Memory"}} in body["spec"]["volumes"]
    own = [{"name": "shm", "mountPath": SHM_DIRECTORY}]
    for untouched in (pod(serve()), pod(serve("--tensor-parallel-size", "2", volumeMounts=own))):
        assert "kvpool-shm" not in str(changed(untouched))


def test_a_disk_tier_has_a_folder_and_external_sentinels_a_password() -> None:
    body = changed(pod(serve()), disk={"sizeLimit": "1Gi"}, sentinel_password=("theirs", "word"))
    mounts = {mount["mountPath"]: mount["name"] for mount in target(body)["volumeMounts"]}
    assert mounts["/var/lib/kvpool"] == "kvpool-disk"
    assert mounts["/etc/kvpool-sentinel"] == "kvpool-sentinel-auth"
    volumes = {volume["name"]: volume for volume in body["spec"]["volumes"]}
    assert volumes["kvpool-disk"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert volumes["kvpool-sentinel-auth"]["secret"]["items"] == [{"key": "word", "path": "password"}]


def test_no_password_no_volume() -> None:
    assert "kvpool-store-auth" not in str(changed(pod(serve()), password=None))


def test_a_seed_of_the_users_is_replaced() -> None:
    body = changed(pod(serve(env=[{"name": "PYTHONHASHSEED", "value": "0"}, {"name": "A", "value": "b"}])))
    assert environment(target(body))["PYTHONHASHSEED"] == {"secretKeyRef": SEED}
    assert [one["name"] for one in target(body)["env"]][:2] == ["PYTHONHASHSEED", "A"]


def test_an_init_container_brings_the_connector() -> None:
    body = changed(pod(serve(env=[{"name": "PYTHONPATH", "value": "/own"}])), payload_image="payload:1")
    (init,) = body["spec"]["initContainers"]
    assert init["image"] == "payload:1"
    assert init["securityContext"]["runAsNonRoot"] is True
    assert init["volumeMounts"] == [{"name": "kvpool-payload", "mountPath": "/opt/kvpool-payload"}]
    assert environment(target(body))["PYTHONPATH"] == "/own:/opt/kvpool-payload"
    assert {"name": "kvpool-payload", "emptyDir": {}} in body["spec"]["volumes"]
