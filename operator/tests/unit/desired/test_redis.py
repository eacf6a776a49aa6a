"""The managed store."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kvpool_operator.desired import desired
from kvpool_operator.desired.stores import redis

from ..conftest import MakePool


def deployment(pool: Any) -> dict[str, Any]:
    built = redis.build_deployment(pool)
    assert built is not None
    return built


def container(pool: Any) -> dict[str, Any]:
    only: dict[str, Any] = deployment(pool)["spec"]["template"]["spec"]["containers"][0]
    return only


def test_blocks_get_85_percent_of_the_memory(make_pool: MakePool) -> None:
    config = redis.build_configmap(make_pool("{backend: {type: Redis, memory: 100Mi}}"))
    assert config is not None
    assert f"maxmemory {85 * (1 << 20)}\n" in config["data"]["redis.conf"]


def test_nothing_is_kept_on_disk_and_the_oldest_goes_first(make_pool: MakePool) -> None:
    config = redis.build_configmap(make_pool("{backend: {type: Redis}}"))
    assert config is not None
    lines = config["data"]["redis.conf"].splitlines()
    assert {'save ""', "appendonly no", "maxmemory-policy allkeys-lru"} <= set(lines)


def test_memory_is_request_and_limit_whatever_resources_say(make_pool: MakePool) -> None:
    pool = make_pool("{backend: {memory: 4Gi, resources: {requests: {cpu: 2, memory: 1Gi}, limits: {cpu: 4}}}}")
    assert container(pool)["resources"] == {
        "requests": {"cpu": 2, "memory": "4Gi"},
        "limits": {"cpu": 4, "memory": "4Gi"},
    }


def test_the_probe_has_no_password_on_the_command_line(make_pool: MakePool) -> None:
    probe = container(make_pool("{backend: {type: Redis}}"))["readinessProbe"]["exec"]["command"]
    assert probe == ["sh", "/etc/kvpool-store-config/ping.sh", "127.0.0.1", "6379"]


@pytest.mark.parametrize(
    ("kind", "variables"), [("Redis", {"REDISCLI_AUTH"}), ("Valkey", {"VALKEYCLI_AUTH", "REDISCLI_AUTH"})]
)
def test_people_who_look_into_the_store_find_the_password_in_its_environment(
    make_pool: MakePool, kind: str, variables: set[str]
) -> None:
    environment = container(make_pool({"backend": {"type": kind}}))["env"]
    assert {variable["name"] for variable in environment} == variables
    assert all("secretKeyRef" in variable["valueFrom"] for variable in environment)


def test_valkey_has_its_own_programs_and_image(make_pool: MakePool) -> None:
    valkey = container(make_pool("{backend: {type: Valkey}}"))
    config = redis.build_configmap(make_pool("{backend: {type: Valkey}}"))
    assert config is not None
    assert "exec valkey-server " in config["data"]["start-lone.sh"]
    assert "valkey" in valkey["image"]


def test_the_pools_image_wins_over_the_operators(make_pool: MakePool) -> None:
    settings = {"images": {"redis": "registry.example/redis:1"}}
    assert container(make_pool("{backend: {type: Redis}}", settings=settings))["image"] == "registry.example/redis:1"
    assert container(make_pool("{backend: {type: Redis, image: mine:1}}", settings=settings))["image"] == "mine:1"


def test_the_acl_file_has_a_digest_and_no_password() -> None:
    assert "secret-word" not in redis.acl("secret-word")
    assert "user default off" in redis.acl("secret-word")


def test_the_store_mounts_the_acl_file_only(make_pool: MakePool) -> None:
    volumes = deployment(make_pool("{backend: {}}"))["spec"]["template"]["spec"]["volumes"]
    (auth,) = [volume["secret"] for volume in volumes if volume["name"] == "auth"]
    assert auth["items"] == [{"key": "users.acl", "path": "users.acl"}]


def test_the_secret_has_the_password_engines_mount(make_pool: MakePool) -> None:
    secret = redis.build_auth_secret(make_pool("{backend: {}}", store_password="word"))
    assert secret is not None
    assert base64.b64decode(secret["data"]["password"]) == b"word"


def test_the_operators_pod_template_reaches_the_store_and_cannot_break_its_selector(make_pool: MakePool) -> None:
    settings = {
        "storeDefaults": {
            "podTemplate": {
                "metadata": {"labels": {"team": "cache", "kvpool.dev/pool": "other"}},
                "spec": {"nodeSelector": {"disk": "fast"}},
            }
        }
    }
    built = deployment(make_pool("{backend: {}}", settings=settings))["spec"]
    labels = built["template"]["metadata"]["labels"]
    assert labels["team"] == "cache"
    assert built["selector"]["matchLabels"].items() <= labels.items()
    assert built["template"]["spec"]["nodeSelector"] == {"disk": "fast"}


def test_an_external_store_is_not_run(make_pool: MakePool) -> None:
    pool = make_pool("{backend: {external: {host: redis.example}}}")
    assert redis.build_deployment(pool) is None
    assert all(manifest["kind"] not in ("Deployment", "Service") for manifest in desired(pool))
