"""The file that is rendered for LMCache, read by LMCache's own loader, and its client with a real server behind a password."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvpool_connector.config import parse
from kvpool_operator.desired.connectors import lmcache
from testkit.engine import ENGINE_PYTHON, ROOT

OVERLAY = ROOT / ".venvs/lmserver"
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        not (OVERLAY.exists() and ENGINE_PYTHON.exists()),
        reason="LMCache is not here: run tools/setup.sh engine servers",
    ),
]
SENTINELS = {"master_name": "kv", "endpoints": [{"host": "s0", "port": 26379}, {"host": "s1", "port": 26379}]}
STORES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "redis": {"type": "redis", "host": "h", "port": 7000, "database": 3},
    "redis with a password": {"type": "redis", "host": "h", "password_file": "/p", "username": "u"},
    "valkey": {"type": "valkey", "host": "h"},
    "sentinel": {"type": "redis", "sentinel": SENTINELS},
    "mooncake": {"type": "mooncake", "master": "m:50051", "segment_size": "1Gi"},
    "mooncake with etcd": {"type": "mooncake", "master": "etcd://e0:2379;e1:2379", "metadata_server": "etcd://e0:2379"},
    "lmcache server": {"type": "lmcache", "host": "h", "port": 8080},
    "infinistore": {"type": "infinistore", "experimental": True, "host": "h", "device": "mlx5_1"},
}
LOAD = """
import asyncio, json, sys
from lmcache.v1.config import load_engine_config_with_overrides
from lmcache.v1.storage_backend.connector import ConnectorManager
answers = {}
for name, path in json.loads(sys.argv[1]).items():
    config = load_engine_config_with_overrides(config_file_path=path)
    keys = ("chunk_size", "max_local_cpu_size", "remote_url", "remote_serde", "extra_config", "local_cpu")
    answer = {key: getattr(config, key) for key in keys}
    answer["set"] = sorted(config._user_set_keys)
    if config.remote_url:
        manager = ConnectorManager(config.remote_url, asyncio.new_event_loop(), None, config)
        answer["adapter"] = [type(one).__name__ for one in manager.adapters if one.can_parse(config.remote_url)]
    answers[name] = answer
print("ANSWER" + json.dumps(answers))
"""
TALK = """
import asyncio, os, sys
from lmcache.v1.storage_backend.native_clients.resp_client import RESPClient
"""


def run(program: str, *arguments: str, **variables: str) -> str:
    """The answer of a program in LMCache's environment."""
    done = subprocess.run(
        [str(ENGINE_PYTHON), "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(OVERLAY), "LMCACHE_TRACK_USAGE": "false"} | variables,
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.partition("ANSWER")[2]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What LMCache made of each store's file. One process: its import takes seconds."""
    folder = tmp_path_factory.mktemp("lmcache")
    paths = {}
    for number, (name, remote) in enumerate(STORES.items()):
        content = {"tiers": {"cpu": {"size": "3Gi"}}} | ({"remote": remote} if remote else {})
        path: Path = folder / f"{number}.yaml"
        path.write_text(lmcache.text(parse(content, name)))
        paths[name] = str(path)
    answers: dict[str, dict[str, Any]] = json.loads(run(LOAD, json.dumps(paths)))
    return answers


@pytest.mark.parametrize(
    ("store", "url", "adapter"),
    [
        ("none", None, None),
        ("redis", "redis://h:7000/3", "RedisConnectorAdapter"),
        ("redis with a password", "resp://h:6379", "RESPConnectorAdapter"),
        ("valkey", "redis://h:6379/0", "RedisConnectorAdapter"),
        ("sentinel", "redis-sentinel://s0:26379,s1:26379", "RedisSentinelConnectorAdapter"),
        ("mooncake", "mooncakestore://m:50051/", "MooncakestoreConnectorAdapter"),
        ("mooncake with etcd", "mooncakestore://e0:2379/", "MooncakestoreConnectorAdapter"),
        ("lmcache server", "lm://h:8080", "LMServerConnectorAdapter"),
        ("infinistore", "infinistore://h:22345/?device=mlx5_1", "InfinistoreConnectorAdapter"),
    ],
)
def test_lmcache_accepts_the_file(
    loaded: dict[str, dict[str, Any]], store: str, url: str | None, adapter: str | None
) -> None:
    """Every key is one that it knows, and one of its clients takes the URL."""
    config = loaded[store]
    assert (config["chunk_size"], config["max_local_cpu_size"], config["local_cpu"]) == (256, 3.0, True)
    assert config["remote_url"] == url
    assert config.get("adapter", []) == ([adapter] if adapter else [])
    written = {"chunk_size", "local_cpu", "max_local_cpu_size", "pre_caching_hash_algorithm", "save_unfull_chunk"}
    assert written <= set(config["set"])
