"""What a Pod looks like afterwards, by kind of container."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import ConflictPolicy, Delivery
from kvpool_operator.injection.pod import inject

from .injected import changed, environment, target
from .pods import KINDS, SIDECAR, container, facts, pod, serve

MAINS = ("main", "kserve-container", "own", "ray-head", "machine-learning")
"""Names of the containers that run vLLM in ``KINDS``."""
PAYLOAD = "/opt/kvpool-payload"
SEED = {"name": "demo-hash-seed", "key": "seed", "optional": True}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gets_configuration_seed_and_password(kind: str) -> None:
    expected = next(one for one in KINDS[kind]["spec"]["containers"] if one["name"] in MAINS)
    body = changed(KINDS[kind])
    one = target(body)
    assert one["name"] == expected["name"]
    assert (one.get("command"), one.get("args")) == (expected.get("command"), expected.get("args"))
    variables = environment(one)
    assert variables["KVPOOL_CONFIG_FILE"] == "/etc/kvpool/kvpool.yaml"
    assert variables["PYTHONHASHSEED"] == {"secretKeyRef": SEED}
    assert variables["KVPOOL_CONFLICT_POLICY"] == "Skip"
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


@pytest.mark.parametrize("policy", ConflictPolicy)
def test_the_engine_is_told_the_pools_policy(policy: ConflictPolicy) -> None:
    own = [{"name": "KVPOOL_CONFLICT_POLICY", "value": "x"}, {"name": "KVPOOL_ON_FAILURE", "value": "stop"}]
    variables = environment(target(changed(pod(serve(env=own)), conflict_policy=policy)))
    assert variables["KVPOOL_CONFLICT_POLICY"] == policy
    assert variables["KVPOOL_ON_FAILURE"] == "stop"


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


def test_room_for_the_disk_tier_grows_like_memory() -> None:
    """Its files count as the container's, and one that exceeds its limit is evicted."""
    amounts = {"ephemeral-storage": "40Gi", "memory": "8Gi"}
    body = pod(serve(resources={"requests": amounts, "limits": amounts}))
    after = target(changed(body, disk=100 << 30))["resources"]
    assert after["requests"] == after["limits"] == {"ephemeral-storage": "140Gi", "memory": "12Gi"}
    assert target(changed(body))["resources"]["limits"]["ephemeral-storage"] == "40Gi"
    without = pod(serve(resources={"limits": {"memory": "8Gi"}}))
    assert target(changed(without, disk=1 << 30))["resources"]["limits"] == {"memory": "12Gi"}


def test_a_disk_tier_has_a_folder_and_external_sentinels_a_password() -> None:
    body = changed(pod(serve()), disk=1 << 30, sentinel_password=("theirs", "word"))
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


@pytest.mark.parametrize(
    ("delivery", "image", "brought"),
    [
        ("Auto", "vllm/vllm-openai:v0.32.0", True),
        ("Auto", "kvpool/serving:0.2.0", False),
        ("Auto", "docker.io/kvpool/serving@sha256:0", False),
        ("Auto", "registry.example:5000/kvpool/serving:0.1.0", True),
        ("Image", "vllm/vllm-openai:v0.32.0", False),
        ("InitContainer", "kvpool/serving:0.1.0", True),
    ],
)
def test_the_connector_comes_along_where_the_image_has_none(delivery: str, image: str, brought: bool) -> None:
    body = changed(pod({**serve(), "image": image}), delivery=Delivery(delivery))
    assert ("initContainers" in body["spec"]) == brought
    assert ("PYTHONPATH" in environment(target(body))) == brought


def test_an_init_container_brings_the_connector() -> None:
    """It names no user, since some clusters assign one: the image has its own."""
    body = changed(pod(serve()))
    (init,) = body["spec"]["initContainers"]
    assert init["image"] == "payload:1"
    assert init["securityContext"]["runAsNonRoot"] is True
    assert "runAsUser" not in init["securityContext"]
    assert init["volumeMounts"] == [{"name": "kvpool-payload", "mountPath": PAYLOAD}]
    assert {"name": "kvpool-payload", "emptyDir": {}} in body["spec"]["volumes"]
    root = pod(serve())
    root["spec"]["securityContext"] = {"runAsUser": 0}
    (init,) = changed(root)["spec"]["initContainers"]
    assert "runAsNonRoot" not in init["securityContext"], "the kubelet would not start it"


REFERENCE = {"configMapKeyRef": {"name": "a", "key": "b"}}
FROM = {"envFrom": [{"configMapRef": {"name": "settings"}}]}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, PAYLOAD),
        ({"env": [{"name": "PYTHONPATH", "value": "/own"}]}, f"/own:{PAYLOAD}"),
        ({"env": [{"name": "PYTHONPATH", "value": "/a::"}]}, f"/a:::{PAYLOAD}"),
        ({"env": [{"name": "PYTHONPATH", "value": ""}], **FROM}, PAYLOAD),
        ({"env": [{"name": "PYTHONPATH", "value": f"{PAYLOAD}:/b"}]}, f"{PAYLOAD}:/b"),
        ({"env": [{"name": "PYTHONPATH", "valueFrom": REFERENCE}]}, f"$(KVPOOL_KEPT_PYTHONPATH):{PAYLOAD}"),
        (FROM, f"$(PYTHONPATH):{PAYLOAD}"),
        ({"envFrom": [{"prefix": "OTHER_", "secretRef": {"name": "a"}}]}, PAYLOAD),
        ({"envFrom": [{"prefix": "PYTHON", "secretRef": {"name": "a"}}]}, f"$(PYTHONPATH):{PAYLOAD}"),
    ],
)
def test_the_users_python_path_comes_first(fields: dict[str, Any], path: str) -> None:
    body = changed(pod(container(**fields)))
    assert environment(target(body))["PYTHONPATH"] == path
    assert changed(body) == body


def test_a_python_path_from_elsewhere_is_kept_before_ours() -> None:
    """The kubelet fills in only what stands before."""
    made = target(changed(pod(serve(env=[{"name": "PYTHONPATH", "valueFrom": REFERENCE}]))))["env"]
    order = [one["name"] for one in made]
    assert made[0] == {"name": "KVPOOL_KEPT_PYTHONPATH", "valueFrom": REFERENCE}
    assert order.index("PYTHONPATH") > 0


def said(body: dict[str, Any]) -> str:
    return str(body["metadata"]["annotations"].get("kvpool.dev/warning", ""))


def test_a_replaced_seed_is_told_with_the_way_out() -> None:
    body = pod(serve(env=[{"name": "PYTHONHASHSEED", "value": "123"}]))
    outcome = inject(body, facts())
    (warning,) = outcome.warnings
    assert warning.startswith("kvpool: PYTHONHASHSEED=123 is replaced by the pool's")
    assert warning.endswith("key seed of Secret demo-hash-seed")
    assert said(outcome.body) == warning.removeprefix("kvpool: ")
    assert said(changed(outcome.body)) == said(outcome.body), "a second look keeps it"
    assert not said(changed(pod(serve())))


@pytest.mark.parametrize(
    ("fields", "sizes", "warned"),
    [
        ({"livenessProbe": {}}, {"cpu_tier": 64 << 30}, True),
        ({"livenessProbe": {}}, {"disk": 64 << 30}, True),
        ({"livenessProbe": {}}, {}, False),
        ({"livenessProbe": {}, "startupProbe": {}}, {"cpu_tier": 64 << 30}, False),
        ({}, {"cpu_tier": 64 << 30}, False),
    ],
)
def test_a_probe_that_a_long_start_would_break(fields: dict[str, Any], sizes: dict[str, int], warned: bool) -> None:
    assert ("add one" in said(changed(pod(serve(**fields)), **sizes))) == warned


@pytest.mark.parametrize(
    ("value", "warned"),
    [("x", True), ("", True), ("x, KVPoolConnector", True), ("x,KVPoolConnector", False), ("KVPoolConnector", False)],
)
def test_a_list_of_plug_ins_without_ours(value: str, warned: bool) -> None:
    text = said(changed(pod(serve(env=[{"name": "VLLM_PLUGINS", "value": value}]))))
    assert ("add KVPoolConnector to it" in text) == warned
    assert not said(changed(pod(serve())))


def test_a_side_car_is_left_alone() -> None:
    body = changed(pod(SIDECAR, serve()))
    assert body["spec"]["containers"][0] == SIDECAR
