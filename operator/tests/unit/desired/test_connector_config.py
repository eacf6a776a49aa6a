"""The file that the connector reads."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kvpool_connector.config import ConnectorConfig, RedisRemote, parse
from kvpool_operator.desired import Pool, connector_config, desired

from ..conftest import MakePool


def read(pool: Pool) -> ConnectorConfig:
    return parse(yaml.safe_load(connector_config.text(pool)), "test")


def test_a_managed_store(make_pool: MakePool) -> None:
    config = read(make_pool("{backend: {type: Redis}, tiers: {cpu: {size: 3Gi}}}"))
    assert config.tiers.cpu.size == 3 << 30
    assert config.remote is not None
    assert config.remote.type == "redis"
    assert config.remote.host == "demo-store.team.svc.cluster.local"
    assert (config.remote.username, config.remote.password_file) == ("kvpool", "/etc/kvpool-store/password")
    assert config.pool is not None
    assert (config.pool.namespace, config.pool.name) == ("team", "demo")


def test_an_external_store(make_pool: MakePool) -> None:
    spec = """
    backend:
      type: Valkey
      external: {host: h.example, port: 7000, database: 3, auth: {secretRef: {name: s, usernameKey: u}}}
    connector: {ttlSeconds: 60, timeouts: {lookupMs: 7, handoverMs: 60000, stallMs: 90}, offloadGeneratedTokens: false}
    """
    config = read(make_pool(spec, external_username="ada"))
    assert isinstance(config.remote, RedisRemote)
    assert (config.remote.host, config.remote.port, config.remote.database) == ("h.example", 7000, 3)
    assert (config.remote.username, config.remote.ttl_s, config.remote.timeouts.lookup_ms) == ("ada", 60, 7)
    assert (config.remote.timeouts.handover_ms, config.remote.timeouts.stall_ms) == (60_000, 90)
    assert config.offload_generated_tokens is False


def test_no_store(make_pool: MakePool) -> None:
    assert read(make_pool("{tiers: {cpu: {size: 1Gi}}}")).remote is None


def test_a_pool_without_a_tier_has_staging_memory(make_pool: MakePool) -> None:
    assert read(make_pool("{backend: {}}")).tiers.cpu.size == 512 << 20


@pytest.mark.parametrize(("revision", "kept"), [("main", None), ("a" * 40, "a" * 40), ("a" * 39, None)])
def test_only_a_commit_is_a_part_of_the_keys(make_pool: MakePool, revision: str, kept: Any) -> None:
    spec = {"backend": {}, "model": {"name": "m", "revision": revision}}
    assert read(make_pool(spec)).model_revision == kept


def test_a_file_is_written_once_for_all_engines(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each engine has the file in its Pod, and PyYAML takes milliseconds for it."""
    calls: list[object] = []

    def counted(content: object, **options: Any) -> str:
        calls.append(content)
        return str(safe_dump(content, **options))

    safe_dump = yaml.safe_dump
    monkeypatch.setattr(yaml, "safe_dump", counted)
    engines = [{"name": f"e{number}"} for number in range(8)]
    desired(make_pool({"tiers": {"cpu": {"size": "3Gi"}}, "engines": engines, "model": {"name": "m"}}))
    assert len(calls) <= 1
