"""The configuration file: what is accepted, and what a person is told about the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.config import ConfigError, ConnectorConfig, format_bytes, load, parse, parse_quantity
from kvpool_connector.config.model import EvictionPolicy
from kvpool_connector.log import get_logger
from kvpool_connector.tiers.policy import make_policy

SMALLEST: dict[str, Any] = {"tiers": {"cpu": {"size": "8Gi"}}}
REMOTE: dict[str, Any] = {"type": "redis", "host": "store"}


def with_disk(**changes: object) -> dict[str, Any]:
    """The smallest configuration with a disk tier."""
    return {"tiers": {"cpu": {"size": "8Gi"}, "disk": {"path": "/disk", "size": "64Gi"} | changes}}


def refused(content: object) -> str:
    """The message for a configuration that cannot be used."""
    with pytest.raises(ConfigError) as caught:
        parse(content, "the source")
    return str(caught.value)


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
        "timeouts": {"lookup_ms": 50, "fetch_ms": 5_000, "put_ms": 10_000, "connect_ms": 3_000, "handover_ms": 1_000},
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


# ---- sources -------------------------------------------------------------------------------------------------


def test_from_the_file(tmp_path: Path) -> None:
    """What the operator mounts."""
    path = tmp_path / "kvpool.yaml"
    path.write_text("tiers: {cpu: {size: 2Gi}}\ntenant: red\n")
    config = load({}, {"KVPOOL_CONFIG_FILE": str(path)})
    assert (config.tiers.cpu.size, config.tenant) == (2 << 30, "red")


def test_from_the_command_line() -> None:
    """What a person writes who starts vLLM by hand."""
    assert load({"kvpool": SMALLEST, "spec_name": "other"}, {}) == parse(SMALLEST, "test")
    assert load({"kvpool": SMALLEST}, {"KVPOOL_CONFIG_FILE": ""}) == parse(SMALLEST, "test")


def test_two_sources_are_refused(tmp_path: Path) -> None:
    """Which one wins would be a guess."""
    with pytest.raises(ConfigError, match=r"two configurations: KVPOOL_CONFIG_FILE=/a .*remove one"):
        load({"kvpool": SMALLEST}, {"KVPOOL_CONFIG_FILE": "/a"})


def test_no_source_says_how_to_give_one() -> None:
    """With an example that works."""
    with pytest.raises(ConfigError, match="no configuration: set KVPOOL_CONFIG_FILE"):
        load({}, {})


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """Named with the reason."""
    with pytest.raises(ConfigError, match=r"KVPOOL_CONFIG_FILE=.*missing cannot be read: No such file or directory"):
        load({}, {"KVPOOL_CONFIG_FILE": str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load({}, {"KVPOOL_CONFIG_FILE": str(tmp_path)})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """Named with the reason."""
    path = tmp_path / "closed"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load({}, {"KVPOOL_CONFIG_FILE": str(path)})


@pytest.mark.parametrize(
    "content", [b"tiers: {cpu", b"\xff\xfe\x00", b"tenant: 2024-02-31", b"? [a]\n: b", b"a: !!int x"]
)
def test_a_file_that_is_not_yaml(tmp_path: Path, content: bytes) -> None:
    """Including what PyYAML reports as something else than a YAML error."""
    path = tmp_path / "kvpool.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"kvpool\.yaml is not YAML: "):
        load({}, {"KVPOOL_CONFIG_FILE": str(path)})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["version", "tiers", "cpu", "size", "remote", "type", "host", "timeouts", "pool", "x"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_content_is_a_configuration_or_a_config_error(content: object) -> None:
    """Never another exception."""
    try:
        assert isinstance(parse(content, "test"), ConnectorConfig)
    except ConfigError as error:
        assert str(error).startswith("test: ")


# ---- quantities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), (0, 0), (1024, 1024), ("1024", 1024), (" 5Gi ", 5 << 30), ("1k", 1000), ("1Ki", 1024), ("1M", 10**6),
        ("1Mi", 1 << 20), ("1.5Gi", 3 << 29), (".5Ki", 512), ("5.Ki", 5120), ("1E", 10**18), ("1Ei", 1 << 60), ("1e9", 10**9),
        ("1E9", 10**9), ("1e+3", 1000), ("15e-1k", None), ("1500e-2", 15), ("2Ti", 2 << 40), ("1P", 10**15), ("0.5", None),
        ("1e-1", None), ("-1", None), ("1K", None), ("1ki", None), ("1KiB", None), ("1 Gi", None), ("Gi", None), ("", None),
        ("1e", None), ("1e100", None), ("0x10", None), ("1_000", None), ("\u0661", None), ("inf", None), ("nan", None),
    ],
)  # fmt: skip
def test_quantities(text: str | int, count: int | None) -> None:
    """As Kubernetes reads them, as far as they are whole bytes."""
    if count is None:
        with pytest.raises(ValueError, match=r"is not a (size|whole number of bytes)"):
            parse_quantity(text)
    else:
        assert parse_quantity(text) == count


UNITS = {
    "": 1,
    "k": 1000,
    "Ki": 1 << 10,
    "M": 10**6,
    "Mi": 1 << 20,
    "G": 10**9,
    "Gi": 1 << 30,
    "T": 10**12,
    "Ti": 1 << 40,
}


@given(st.integers(0, 1 << 63), st.sampled_from(sorted(UNITS)))
def test_a_quantity_that_was_written_is_read(count: int, unit: str) -> None:
    """Exactly, also above what a float holds."""
    whole, rest = divmod(count, UNITS[unit])
    if rest == 0:
        assert parse_quantity(f"{whole}{unit}") == count
    assert parse_quantity(count) == parse_quantity(str(count)) == count


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    """Never another exception, never a negative size."""
    try:
        assert parse_quantity(text) >= 0
    except ValueError as error:
        assert repr(text) in str(error)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 << 30, "8 GiB"), (5 << 50, "5120 TiB"), (-2048, "-2 KiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    """Binary units, at most one decimal."""
    assert format_bytes(count) == text


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
