"""vLLM's Deployments."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kvpool_operator.desired import Pool, engines

from ..conftest import MakePool

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SPEC: dict[str, Any] = {"model": {"name": MODEL}, "backend": {"type": "Redis"}, "tiers": {"cpu": {"size": "1Gi"}}}


def spec_with(**engine: Any) -> dict[str, Any]:
    return {**SPEC, "engines": [engine]}


def spec_of(pool: Pool) -> dict[str, Any]:
    built: dict[str, Any] = engines.build_deployment(pool, pool.spec.engines[0])["spec"]
    return built


def container(pool: Pool) -> dict[str, Any]:
    only: dict[str, Any] = spec_of(pool)["template"]["spec"]["containers"][0]
    return only


def environment(pool: Pool) -> dict[str, Any]:
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container(pool)["env"]}


def argument(pool: Pool, name: str) -> list[str]:
    """Every value that an argument is given, in order."""
    arguments = container(pool)["args"]
    return [arguments[place + 1] for place, word in enumerate(arguments) if word == name]


def test_vllm_is_told_of_the_connector(make_pool: MakePool) -> None:
    """As a user's engine is: by the environment, and by no argument."""
    pool = make_pool(spec_with())
    assert "kvpool" not in str(container(pool)["args"]).lower()
    assert argument(pool, "--prefix-caching-hash-algo") == []
    assert environment(pool)["KVPOOL_CONFIG_FILE"] == "/etc/kvpool/kvpool.yaml"
    assert environment(pool)["PYTHONHASHSEED"] == {"secretKeyRef": {"name": "demo-hash-seed", "key": "seed"}}


def test_an_image_of_the_users_gets_the_connector(make_pool: MakePool) -> None:
    pool = make_pool(spec_with(image="vllm/vllm-openai:v0.32.0", env=[{"name": "PYTHONPATH", "value": "/own"}]))
    pod = spec_of(pool)["template"]["spec"]
    assert [one["name"] for one in pod["initContainers"]] == ["kvpool-payload"]
    assert environment(pool)["PYTHONPATH"] == "/own:/opt/kvpool-payload"
    assert "kvpool-payload" in {one["name"] for one in container(pool)["volumeMounts"]}
    assert "kvpool-payload" in {one["name"] for one in pod["volumes"]}
    lmcache = spec_with(image="x:1", gpus=1) | {"connector": {"type": "LMCache"}}
    for ours in (spec_with(), spec_with(image="kvpool/serving:9"), lmcache):
        assert "kvpool-payload" not in str(spec_of(make_pool(ours)))


def test_model_and_served_name(make_pool: MakePool) -> None:
    pool = make_pool(spec_with())
    assert argument(pool, "--model") == [MODEL]
    assert argument(pool, "--served-model-name") == [MODEL]
    spec = spec_with() | {"model": {"name": MODEL, "servedName": "small", "revision": "main"}}
    assert argument(make_pool(spec), "--served-model-name") == ["small"]
    assert argument(make_pool(spec), "--revision") == ["main"]


def test_a_model_that_is_on_a_volume_is_loaded_from_there_under_its_own_name(make_pool: MakePool) -> None:
    settings = {"engineDefaults": {"modelPaths": {MODEL: "/models/small"}}}
    spec = spec_with() | {"model": {"name": MODEL, "revision": "main"}}
    pool = make_pool(spec, settings=settings)
    assert argument(pool, "--model") == ["/models/small"]
    assert argument(pool, "--served-model-name") == [MODEL]
    assert argument(pool, "--revision") == []
    assert environment(pool)["HF_HUB_OFFLINE"] == "1"


def test_the_users_arguments_come_last(make_pool: MakePool) -> None:
    settings = {"engineDefaults": {"args": ["--dtype", "float32"]}}
    pool = make_pool(spec_with(args=["--dtype", "bfloat16"]), settings=settings)
    assert argument(pool, "--dtype") == ["float32", "bfloat16"]


def test_streams_may_end_before_their_pod(make_pool: MakePool) -> None:
    pool = make_pool(spec_with())
    (drain,) = argument(pool, "--shutdown-timeout")
    leave = container(pool)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert int(drain) >= 60
    grace = spec_of(pool)["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= leave + int(drain) + 20


def test_a_longer_drain_is_the_users(make_pool: MakePool) -> None:
    template = {"spec": {"terminationGracePeriodSeconds": 700}}
    pool = make_pool(spec_with(args=["--shutdown-timeout", "600"], podTemplate=template))
    assert argument(pool, "--shutdown-timeout")[-1] == "600"
    assert spec_of(pool)["template"]["spec"]["terminationGracePeriodSeconds"] == 700


def test_the_users_environment_wins_and_replaces_the_source(make_pool: MakePool) -> None:
    settings = {"engineDefaults": {"env": [{"name": "A", "value": "operator"}, {"name": "B", "value": "operator"}]}}
    env = [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    pool = make_pool(spec_with(env=env), settings=settings)
    (variable,) = [entry for entry in container(pool)["env"] if entry["name"] == "A"]
    assert variable == {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    assert environment(pool)["B"] == "operator"


def test_a_password_is_mounted_where_the_store_has_one(make_pool: MakePool) -> None:
    volumes = spec_of(make_pool(spec_with()))["template"]["spec"]["volumes"]
    assert {
        "name": "store-auth",
        "secret": {
            "secretName": "demo-store-auth",
            "defaultMode": 0o440,
            "items": [{"key": "password", "path": "password"}],
        },
    } in volumes


def test_the_users_own_secret_is_mounted_for_an_external_store(make_pool: MakePool) -> None:
    external = {"host": "redis.example", "auth": {"secretRef": {"name": "mine", "passwordKey": "word"}}}
    spec = spec_with() | {"backend": {"type": "Redis", "external": external}}
    (secret,) = [
        volume["secret"]
        for volume in spec_of(make_pool(spec))["template"]["spec"]["volumes"]
        if volume["name"] == "store-auth"
    ]
    assert (secret["secretName"], secret["items"]) == ("mine", [{"key": "word", "path": "password"}])


@pytest.mark.parametrize("backend", [{"type": "None"}, {"type": "Redis", "external": {"host": "redis.example"}}])
def test_without_a_password_nothing_is_mounted(make_pool: MakePool, backend: dict[str, Any]) -> None:
    pool = make_pool(spec_with() | {"backend": backend})
    assert "store-auth" not in yaml.safe_dump(spec_of(pool))


@pytest.mark.parametrize(
    ("engine", "surge", "unavailable"),
    [
        ({"replicas": 2}, 0, 1),
        ({"replicas": 1}, 1, 0),
        ({"replicas": 1, "gpus": 1}, 0, 1),
        ({"replicas": 4, "gpus": 1}, 0, 1),
    ],
)
def test_pods_roll_one_by_one(make_pool: MakePool, engine: dict[str, Any], surge: int, unavailable: int) -> None:
    rolling = spec_of(make_pool(spec_with(**engine)))["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_gpus_are_limits_and_share_the_model(make_pool: MakePool) -> None:
    pool = make_pool(spec_with(gpus=2))
    assert container(pool)["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert argument(pool, "--tensor-parallel-size") == ["2"]
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(pool)


def test_requests_follow_the_tiers(make_pool: MakePool) -> None:
    assert container(make_pool(spec_with()))["resources"] == {"requests": {"cpu": "250m", "memory": "4Gi"}}


def test_a_limit_without_a_request_is_the_request(make_pool: MakePool) -> None:
    resources = container(make_pool(spec_with(resources={"limits": {"memory": "3Gi"}})))["resources"]
    assert resources == {"requests": {"cpu": "250m"}, "limits": {"memory": "3Gi"}}


def test_pod_templates_merge_operator_first_then_pool(make_pool: MakePool) -> None:
    settings = {
        "engineDefaults": {
            "podTemplate": {
                "spec": {
                    "nodeSelector": {"zone": "operator", "disk": "fast"},
                    "containers": [
                        {
                            "name": "engine",
                            "command": ["/venv/bin/python"],
                            "volumeMounts": [{"name": "venv", "mountPath": "/venv"}],
                        }
                    ],
                    "volumes": [{"name": "venv", "persistentVolumeClaim": {"claimName": "venv", "readOnly": True}}],
                }
            }
        }
    }
    own = {"spec": {"nodeSelector": {"zone": "pool"}, "containers": [{"name": "sidecar", "image": "x"}]}}
    pod = spec_of(make_pool(spec_with(podTemplate=own), settings=settings))["template"]["spec"]
    assert pod["nodeSelector"] == {"zone": "pool", "disk": "fast"}
    engine, sidecar = pod["containers"]
    assert engine["command"] == ["/venv/bin/python"]
    assert {mount["mountPath"] for mount in engine["volumeMounts"]} >= {"/venv", "/etc/kvpool", "/etc/kvpool-store"}
    assert sidecar["name"] == "sidecar"
    assert "venv" in {volume["name"] for volume in pod["volumes"]}


def test_a_token_comes_from_its_secret(make_pool: MakePool) -> None:
    pool = make_pool(spec_with(hfTokenSecretRef={"name": "hf"}))
    assert environment(pool)["HF_TOKEN"] == {"secretKeyRef": {"name": "hf", "key": "token"}}


def test_the_service_finds_the_pods_by_name_of_the_port(make_pool: MakePool) -> None:
    pool = make_pool(spec_with(port=9000))
    service = engines.build_service(pool, pool.spec.engines[0])["spec"]
    assert service["ports"][0]["port"] == 9000
    assert service["selector"].items() <= spec_of(pool)["template"]["metadata"]["labels"].items()
    assert argument(pool, "--port") == ["9000"]
