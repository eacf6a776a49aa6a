"""What each of LMCache's values means here, and the fix for one that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

from connector.tests.unit.lmcache import refused, remote, text, variables
from kvpool_connector.config import find


@pytest.mark.parametrize("word", ["True", "true", "1", "'True'", ' "true" '])
def test_true(word: str) -> None:
    """As LMCache reads it."""
    assert variables(save_decode_cache=word).config.offload_generated_tokens


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"chunk_size": "abc"}, "LMCACHE_CHUNK_SIZE: 'abc' is not a whole number from 1 to 65536"),
        ({"chunk_size": "0"}, "LMCACHE_CHUNK_SIZE: '0' is not a whole number"),
        ({"chunk_size": "2.5"}, "LMCACHE_CHUNK_SIZE: '2.5' is not a whole number"),
        ({"max_local_cpu_size": "0"}, "LMCACHE_MAX_LOCAL_CPU_SIZE: '0' GB holds nothing: write the GB that each rank may use"),
        ({"max_local_cpu_size": "-1"}, "LMCACHE_MAX_LOCAL_CPU_SIZE: '-1' GB holds nothing"),
        ({"max_local_cpu_size": "5GB"}, "LMCACHE_MAX_LOCAL_CPU_SIZE: '5GB' is not a number of GB, such as 5.0"),
        ({"max_local_cpu_size": "nan"}, "LMCACHE_MAX_LOCAL_CPU_SIZE: 'nan' is not a number of GB"),
        ({"local_cpu": "yes"}, "LMCACHE_LOCAL_CPU: 'yes' is neither True nor False"),
        ({"local_cpu": "False"}, "LMCACHE_LOCAL_CPU: off, and there is neither LMCACHE_LOCAL_DISK nor LMCACHE_REMOTE_URL"),
        ({"local_disk": "/d"}, "LMCACHE_MAX_LOCAL_DISK_SIZE: LMCACHE_LOCAL_DISK is set, but not how many GB"),
        ({"max_local_disk_size": "5"}, "LMCACHE_LOCAL_DISK: missing, though LMCACHE_MAX_LOCAL_DISK_SIZE is set"),
        ({"cache_policy": "ARC"}, "LMCACHE_CACHE_POLICY: 'ARC' must be one of LRU, LFU, FIFO, MRU"),
        ({"remote_serde": "cachegen"}, "LMCACHE_REMOTE_SERDE: 'cachegen' is not offered: KV is stored as it is: set it to naive"),
        ({"extra_config": "{"}, "LMCACHE_EXTRA_CONFIG: not JSON (line 1, column 2)"),
        ({"extra_config": "[1]"}, "LMCACHE_EXTRA_CONFIG: a mapping is expected, not list"),
        ({"remote_url": "store"}, "LMCACHE_REMOTE_URL: no port: write scheme://host:port"),
        ({"remote_url": "lm://store"}, "LMCACHE_REMOTE_URL: no port"),
        ({"remote_url": "lm://:65432"}, "LMCACHE_REMOTE_URL: no host"),
        ({"remote_url": "rediss://h:1"}, "LMCACHE_REMOTE_URL: rediss:// cannot be used: TLS is not offered"),
        ({"remote_url": "unix:///s"}, "LMCACHE_REMOTE_URL: unix:// cannot be used: a socket file is not offered"),
        ({"remote_url": "redis-cluster://h:1"}, "LMCACHE_REMOTE_URL: redis-cluster:// cannot be used"),
        ({"remote_url": "s3://bucket"}, "LMCACHE_REMOTE_URL: no store of the kind s3:// here: use one of redis, valkey"),
        ({"remote_url": "redis://user@h:1"}, "LMCACHE_REMOTE_URL: a user without a password"),
        ({"remote_url": "redis://h:1/x"}, "LMCACHE_REMOTE_URL: the database: 'x' is not a whole number"),
        ({"remote_url": "redis://h:1?protocol=3"}, "LMCACHE_REMOTE_URL: ?protocol= is not offered: remove it"),
        ({"remote_url": "valkey://h:1", "extra_config": '{"tls_enable": true}'}, "extra_config.tls_enable: TLS is not offered"),
        ({"remote_url": "valkey://h:1", "extra_config": '{"valkey_mode": "cluster"}'}, "extra_config.valkey_mode: Redis Cluster"),
        ({"remote_url": "mooncakestore://h:1", "extra_config": '{"protocol": "ascend"}'}, "extra_config.protocol: 'ascend'"),
        (
            {"remote_url": "mooncakestore://h:1", "extra_config": '{"global_segment_size": "20GB"}'},
            "extra_config.global_segment_size: '20GB' is not a whole number",
        ),
        (
            {"remote_url": "infinistore://h:1", "extra_config": '{"infinistore_link_type": "x"}'},
            "extra_config.infinistore_link_type: 'X' must be one of LINK_ETHERNET, LINK_IB",
        ),
        ({"blocking_timeout_secs": "0", "remote_url": "lm://h:1"}, "LMCACHE_BLOCKING_TIMEOUT_SECS: '0' is not a whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_the_fix(keys: dict[str, str], message: str) -> None:
    """One message; LMCache would go on with another value."""
    assert refused(**keys).startswith(message), refused(**keys)


def test_local_memory_that_is_off_stays_the_way_to_a_store() -> None:
    """LMCache keeps a buffer of the same size then, too."""
    found = variables(local_cpu="False", remote_url="lm://h:1")
    assert found.config.tiers.cpu.size == 5 << 30
    assert "LMCACHE_LOCAL_CPU is off: the memory stays the way" in text(found)


def test_the_disk_tier() -> None:
    """By rank, too; of several folders the first."""
    found = variables(2, local_disk="file:///d/,/e", max_local_disk_size="1.5", cache_policy="lfu")
    assert found.config.tiers.disk is not None
    assert found.config.tiers.disk.model_dump(exclude_defaults=True) == {
        "path": "/d/", "size": 3 << 30, "eviction_policy": "slru"
    }  # fmt: skip
    assert "LMCACHE_LOCAL_DISK: of 2 folders only /d/ is used" in text(found)


def test_timeouts() -> None:
    """Within what kvpool lets wait at most."""
    assert remote(remote_url="lm://h:1", blocking_timeout_secs="10", lookup_timeout_ms="3000")["timeouts"] == {
        "lookup_ms": 3000, "fetch_ms": 10_000,
    }  # fmt: skip
    assert remote(remote_url="lm://h:1", blocking_timeout_secs="999", lookup_timeout_ms="99999")["timeouts"] == {
        "lookup_ms": 10_000, "fetch_ms": 120_000, "put_ms": 120_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "section"),
    [
        ({"remote_url": "redis://h"}, {"type": "redis", "host": "h"}),
        ({"remote_url": "redis://[::1]:7000/3"}, {"type": "redis", "host": "::1", "port": 7000, "database": 3}),
        ({"remote_url": "redis://h:1?db=4"}, {"type": "redis", "host": "h", "port": 1, "database": 4}),
        (
            {"remote_url": "valkey://h:1", "extra_config": '{"valkey_enable_ttl": 1, "valkey_ttl_sec": 6, "valkey_database": 2}'},
            {"type": "valkey", "host": "h", "port": 1, "ttl_s": 6, "database": 2},
        ),
        (
            {"remote_url": "redis-sentinel://a:1,b:2"},
            {
                "type": "redis",
                "sentinel": {
                    "master_name": "redismaster", "endpoints": ({"host": "a", "port": 1}, {"host": "b", "port": 2}),
                },
            },
        ),
        ({"remote_url": "h:1"}, {"type": "lmcache", "host": "h", "port": 1}),
        (
            {"remote_url": "mooncakestore://m:1", "extra_config": '{"mooncake_protocol": "rdma", "device_name": "mlx5_0", '
             '"local_hostname": "me", "local_buffer_size": 5}'},
            {
                "type": "mooncake", "master": "m:1", "protocol": "rdma", "devices": "mlx5_0", "local_host": "me",
                "segment_size": 3_355_443_200,
            },
        ),
        (
            {"remote_url": "infinistore://i:12345?device=mlx5_1", "extra_config": '{"infinistore_link_type": "LINK_IB"}'},
            {"type": "infinistore", "experimental": True, "host": "i", "port": 12345, "device": "mlx5_1", "link_type": "IB"},
        ),
    ],
)  # fmt: skip
def test_every_scheme(keys: dict[str, str], section: dict[str, Any]) -> None:
    """The store's section."""
    assert remote(**keys) == section


def test_the_name_of_the_sentinels_primary_comes_from_the_environment() -> None:
    """As for LMCache."""
    found = find({}, {"LMCACHE_REMOTE_URL": "redis-sentinel://a:1", "REDIS_SERVICE_NAME": "kv"})
    assert found.config.remote is not None
    assert found.config.remote.where == "redis, the primary of kv by the sentinels a:1"
