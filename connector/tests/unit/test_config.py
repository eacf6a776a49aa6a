"""The configuration file: what is accepted, and what a person is told about the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import get_args

import pytest

from connector.tests.unit.configs import REMOTE, SMALLEST, refused, with_disk
from kvpool_connector.config import parse
from kvpool_connector.config.model import EvictionPolicy
from kvpool_connector.log import get_logger
from kvpool_connector.tiers.policy import make_policy


def test_the_smallest_configuration_is_one_size() -> None:
    """Everything else has a default."""
    config = parse(SMALLEST, "test")
    assert config.model_dump() == {
        "version": 1,
        "pool": None,
        "tenant": "",
        "model_revision": None,
        "tiers": {"cpu": {"size": 8 << 30, "eviction_policy": "lru"}, "disk": None},
        "remote": None,
        "chunk_tokens": None,
        "admission": "measured",
        "verify_one_in": None,
        "on_failure": "stop",
        "offload_generated_tokens": True,
    }


def test_the_smallest_remote_store_is_a_type_and_a_host() -> None:
    """Everything else has a default."""
    remote = parse(SMALLEST | {"remote": REMOTE}, "test").remote
    assert remote is not None
    assert remote.model_dump() == {
        "type": "redis", "host": "store", "port": 6379, "sentinel": None, "database": 0, "username": None,
        "password_file": None, "ttl_s": None, "write_policy": "write_through",
        "timeouts": {
            "lookup_ms": 50, "fetch_ms": 5_000, "put_ms": 10_000, "connect_ms": 3_000, "stall_ms": 250,
            "handover_ms": 1_000,
        },
    }  # fmt: skip


def test_the_smallest_disk_tier_is_a_path_and_a_size() -> None:
    """Everything else has a default."""
    disk = parse(with_disk(), "test").tiers.disk
    assert disk is not None
    assert disk.model_dump() == {
        "path": "/disk", "size": 64 << 30, "eviction_policy": "lru", "write_policy": "write_through"
    }  # fmt: skip


SENTINEL = {"master_name": "kv", "endpoints": [{"host": "s1", "port": 26379}, {"host": "s2", "port": 26379}]}


@pytest.mark.parametrize(
    ("remote", "where"),
    [
        (REMOTE, "redis at store:6379"),
        ({"type": "valkey", "sentinel": SENTINEL}, "valkey, the primary of kv by the sentinels s1:26379, s2:26379"),
        ({"type": "lmcache", "host": "lm"}, "lmcache at lm:65432"),
        ({"type": "mooncake", "master": "m:50051"}, "mooncake at m:50051 over tcp"),
        ({"type": "infinistore", "experimental": True, "host": "i"}, "infinistore at i:22345"),
    ],
)
def test_each_kind_of_store_says_where_it_is(remote: dict[str, object], where: str) -> None:
    """For the start-up line and for faults: never a credential."""
    parsed = parse(SMALLEST | {"remote": remote}, "test").remote
    assert parsed is not None
    assert parsed.where == where


@pytest.mark.parametrize(
    ("remote", "message"),
    [
        (REMOTE | {"sentinel": SENTINEL}, "remote: exactly one of host and sentinel is needed"),
        (
            {"type": "redis", "sentinel": {"master_name": "kv", "endpoints": []}},
            "remote.sentinel.endpoints: Tuple should",
        ),
        (
            {"type": "redis", "sentinel": SENTINEL | {"master": "kv"}},
            "remote.sentinel.master: unknown key, did you mean 'master_name'?",
        ),
        ({"type": "redis", "sentinel": SENTINEL | {"username": "a"}}, "remote.sentinel: username is set without"),
        ({"host": "a"}, "remote.type: must be one of redis, valkey, lmcache, mooncake, infinistore"),
        ({"type": "lmcache", "host": "lm", "database": 1}, "remote.database: unknown key"),
        ({"type": "mooncake", "master": "m", "metadata_server": "etcd://u@p"}, "remote.metadata_server"),
        ({"type": "infinistore", "host": "i"}, "remote.experimental: Field required"),
    ],
)
def test_each_kind_of_store_has_its_own_keys(remote: dict[str, object], message: str) -> None:
    """A key of another kind would silently do nothing."""
    assert refused(SMALLEST | {"remote": remote}).startswith(f"the source: {message}")


@pytest.mark.parametrize("policy", ["write_through", "write_back", "selective"])
def test_each_lower_tier_has_its_own_write_policy(policy: str) -> None:
    """The other one keeps its default."""
    config = parse(with_disk(write_policy=policy) | {"remote": REMOTE}, "test")
    assert config.tiers.disk is not None
    assert config.remote is not None
    assert (config.tiers.disk.write_policy, config.remote.write_policy) == (policy, "write_through")
    config = parse(with_disk() | {"remote": REMOTE | {"write_policy": policy}}, "test")
    assert config.tiers.disk is not None
    assert config.remote is not None
    assert (config.tiers.disk.write_policy, config.remote.write_policy) == ("write_through", policy)


@pytest.mark.parametrize("name", get_args(EvictionPolicy))
def test_every_eviction_policy_of_the_file_can_be_made(name: str) -> None:
    """The names are those of the tiers' policies."""
    config = parse({"tiers": {"cpu": {"size": "8Gi", "eviction_policy": name}}}, "test")
    make_policy(config.tiers.cpu.eviction_policy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SMALLEST | {"tennant": "a"}, "tennant: unknown key, did you mean 'tenant'?"),
        ({"tiers": {"cpu": {"sise": "8Gi", "size": 1 << 30}}}, "tiers.cpu.sise: unknown key, did you mean 'size'?"),
        (SMALLEST | {"verify_one": 5}, "verify_one: unknown key, did you mean 'verify_one_in'?"),
        (
            {"tiers": {"cpu": {"size": "8Gi"}, "disk": {"path": "/d", "size": "8Gi", "write_polcy": "selective"}}},
            "tiers.disk.write_polcy: unknown key, did you mean 'write_policy'?",
        ),
        ({"tiers": {"cpu": {"size": "8Gi"}, "zzz": {}}}, "tiers.zzz: unknown key: remove it"),
        (SMALLEST | {"remote": REMOTE | {"hots": "x"}}, "remote.hots: unknown key, did you mean 'host'?"),
        (
            SMALLEST | {"remote": REMOTE | {"timeouts": {"lookup": 5}}},
            "remote.timeouts.lookup: unknown key, did you mean 'lookup_ms'?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(content: object, message: str) -> None:
    """At every depth, also below optional sections."""
    assert refused(content) == f"the source: {message}"


def test_every_fault_is_told_at_once() -> None:
    """Nobody wants to fix a file one fault per start."""
    text = refused({"tiers": {"cpu": {"size": "much"}}, "tennant": "a", "remote": {"type": "redis"}})
    assert "tiers.cpu.size: 'much' is not a size" in text
    assert "tennant: unknown key" in text
    assert "remote: exactly one of host and sentinel is needed" in text


def test_a_newer_version_says_what_to_update() -> None:
    """Even where the newer file has keys that this version does not know."""
    text = refused(SMALLEST | {"version": 2, "novelty": True})
    assert text.startswith("the source: version 2 is newer than this connector reads (1): update the connector")


@pytest.mark.parametrize("version", [0, -1, "1", "2", 1.5, None, [1]])
def test_a_version_that_is_none(version: object) -> None:
    """Named by its field."""
    assert "version: " in refused(SMALLEST | {"version": version})


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "tiers"),
        ({"tiers": None}, "tiers"),
        ({"tiers": {"cpu": {"size": 1000}}}, "tiers.cpu.size"),  # below the smallest
        ({"tiers": {"cpu": {"size": True}}}, "tiers.cpu.size"),
        ({"tiers": {"cpu": {"size": None}}}, "tiers.cpu.size"),
        ({"tiers": {"cpu": {"size": ["8Gi"]}}}, "tiers.cpu.size"),
        ({"tiers": {"cpu": {"size": "8Gi", "eviction_policy": "random"}}}, "tiers.cpu.eviction_policy"),
        (with_disk(path=""), "tiers.disk.path"),
        (with_disk(size=1000), "tiers.disk.size"),
        (with_disk(eviction_policy="random"), "tiers.disk.eviction_policy"),
        (with_disk(write_policy="sometimes"), "tiers.disk.write_policy"),
        ({"tiers": {"cpu": {"size": "8Gi"}, "disk": {"size": "8Gi"}}}, "tiers.disk.path"),
        (SMALLEST | {"remote": REMOTE | {"write_policy": "never"}}, "remote.write_policy"),
        (SMALLEST | {"chunk_tokens": 0}, "chunk_tokens"),
        (SMALLEST | {"chunk_tokens": 65_537}, "chunk_tokens"),
        (SMALLEST | {"admission": "never"}, "admission"),
        (SMALLEST | {"verify_one_in": 0}, "verify_one_in"),
        (SMALLEST | {"on_failure": "ignore"}, "on_failure"),
        (SMALLEST | {"tenant": "a b"}, "tenant"),
        (SMALLEST | {"tenant": "a" * 64}, "tenant"),
        (SMALLEST | {"tenant": "a\n"}, "tenant"),
        (SMALLEST | {"remote": REMOTE | {"type": "memcached"}}, "remote.type"),
        (SMALLEST | {"remote": REMOTE | {"host": ""}}, "remote.host"),
        (SMALLEST | {"remote": REMOTE | {"port": 70_000}}, "remote.port"),
        (SMALLEST | {"remote": REMOTE | {"port": "redis"}}, "remote.port"),
        (SMALLEST | {"remote": REMOTE | {"ttl_s": 0}}, "remote.ttl_s"),
        (SMALLEST | {"remote": REMOTE | {"timeouts": {"lookup_ms": 0}}}, "remote.timeouts.lookup_ms"),
        (SMALLEST | {"remote": [REMOTE]}, "remote"),
        (SMALLEST | {1: 2}, "1"),
    ],
)
def test_a_wrong_value_is_named_by_its_field(content: object, field: str) -> None:
    """One line, no stack of validation internals."""
    text = refused(content)
    assert text.startswith(f"the source: {field}: "), text
    assert "\n" not in text


@pytest.mark.parametrize("content", [None, "text", 5, ["tiers"]])
def test_not_a_mapping(content: object) -> None:
    """An empty file, for one."""
    assert refused(content) == f"the source: a mapping is expected, not {type(content).__name__}"


def test_a_password_in_the_file_is_refused_and_not_repeated() -> None:
    """The file is a ConfigMap; messages go to logs."""
    text = refused(SMALLEST | {"remote": REMOTE | {"password": "quarterdeck"}})
    assert text == "the source: remote.password: unknown key, did you mean 'password_file'?"


def test_a_username_needs_a_password_file() -> None:
    """A user without a password would be the default user, silently."""
    text = refused(SMALLEST | {"remote": REMOTE | {"username": "kv"}})
    assert "remote: username is set without password_file" in text
    assert parse(SMALLEST | {"remote": REMOTE | {"username": "kv", "password_file": "/p"}}, "test").remote is not None


# ---- the package ---------------------------------------------------------------------------------------------


def test_the_configuration_imports_pydantic_and_yaml_only() -> None:
    """The operator's image installs this package without the connector's other dependencies."""
    code = (
        "import sys; before = set(sys.modules); import kvpool_connector.config\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new & {'torch', 'vllm', 'numpy', 'xxhash', 'redis', 'kubernetes', 'huggingface_hub'}))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    assert run.stdout.strip() == ""


def test_loggers_are_below_vllms() -> None:
    """vLLM configures its own logger only; ours would be silent beside it."""
    assert get_logger("kvpool_connector.x").name == "vllm.kvpool_connector.x"
