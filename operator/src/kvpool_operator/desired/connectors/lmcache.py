"""LMCache inside each engine: ``LMCacheConnectorV1`` and its configuration file, made from kvpool's own.

Facts are those of lmcache 0.5.6: the file's keys ``v1/config.py``, URLs ``v1/storage_backend/connector/*_adapter.py``. A password
is never in the file and never in a URL, which LMCache logs: its ``resp://`` client reads it from the environment.
"""

from __future__ import annotations

from typing import Any

from kvpool_connector.config import ConfigError, ConnectorConfig
from kvpool_connector.config.remote import InfiniStoreRemote, LMCacheRemote, MooncakeRemote, RedisRemote
from kvpool_operator.desired import connector_config
from kvpool_operator.desired.connectors.part import EnginePart
from kvpool_operator.desired.files import to_yaml
from kvpool_operator.desired.pool import Manifest, Pool

FILE = "lmcache-config.yaml"
CHUNK_TOKENS = 256
"""LMCache's own default. Only whole chunks are kept."""
NO_USAGE_REPORTS = {"name": "LMCACHE_TRACK_USAGE", "value": "false"}
KV_TRANSFER = {
    "kv_connector": "LMCacheConnectorV1",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


def engine_part(pool: Pool) -> EnginePart:
    """vLLM's own class, which imports the package lmcache from the engine's image. It does not serve hybrid models.

    Raises:
        ConfigError: the connector would refuse the spec.
    """
    environment: list[Manifest] = [
        {"name": "LMCACHE_CONFIG_FILE", "value": f"{connector_config.DIRECTORY}/{FILE}"},
        NO_USAGE_REPORTS,
        *store_variables(pool),
    ]
    return EnginePart(KV_TRANSFER, environment, ["--disable-hybrid-kv-cache-manager"])


def text(config: ConnectorConfig) -> str:
    """LMCache's file for kvpool's configuration.

    Raises:
        ConfigError: LMCache cannot use this store in this way.
    """
    content: dict[str, Any] = {
        "chunk_size": CHUNK_TOKENS,
        "local_cpu": True,
        "max_local_cpu_size": round(config.tiers.cpu.size / 2**30, 3),
        "pre_caching_hash_algorithm": "sha256_cbor",
        "save_unfull_chunk": False,
    }
    if config.remote is not None:
        url, extra = _remote(config.remote)
        content |= {"remote_url": url, "remote_serde": "naive"}
        if extra:
            content["extra_config"] = extra
    return to_yaml(content)


def _remote(
    remote: RedisRemote | LMCacheRemote | MooncakeRemote | InfiniStoreRemote,
) -> tuple[str, dict[str, Any]]:
    """URL and extra configuration of a store."""
    if isinstance(remote, RedisRemote):
        return _redis(remote)
    if isinstance(remote, LMCacheRemote):
        return f"lm://{remote.host}:{remote.port}", {}
    if isinstance(remote, MooncakeRemote):
        return _mooncake(remote)
    extra = {"infinistore_link_type": f"LINK_{remote.link_type.upper()}"}
    device = f"?device={remote.device}" if remote.device else ""
    return f"infinistore://{remote.host}:{remote.port}/{device}", extra


def _redis(remote: RedisRemote) -> tuple[str, dict[str, Any]]:
    if remote.sentinel is not None:
        if remote.password_file or remote.sentinel.password_file:
            raise ConfigError(
                "spec.connector.type LMCache takes the password of a Sentinel group in its URL only, and logs the URL: set "
                "spec.connector.type to KVPool, or use a lone server"
            )
        return f"redis-sentinel://{','.join(map(str, remote.sentinel.endpoints))}", {}
    if not remote.password_file:
        return f"redis://{remote.host}:{remote.port}/{remote.database}", {}
    if remote.database:
        raise ConfigError(
            "spec.backend.external.database: LMCache's client with a password knows database 0 only: use it, or set "
            "spec.connector.type to KVPool"
        )
    return f"resp://{remote.host}:{remote.port}", {"save_chunk_meta": False}


def _mooncake(remote: MooncakeRemote) -> tuple[str, dict[str, Any]]:
    master = remote.master.removeprefix("etcd://").split(";")[0]
    return f"mooncakestore://{master}/", {
        "master_server_address": remote.master,
        "metadata_server": remote.metadata_server,
        "protocol": remote.protocol,
        "device_name": remote.devices,
        "global_segment_size": remote.segment_size,
    }


def store_variables(pool: Pool) -> list[Manifest]:
    """Password, and name of a Sentinel group: what LMCache reads from the environment.

    Source of the names: LMCache's ``redis_adapter.py``, ``redis_connector.py`` and ``resp_l2_adapter.py``.
    """
    remote = connector_config.build(pool).remote
    if not isinstance(remote, RedisRemote):
        return []
    if remote.sentinel is not None:
        return [{"name": "REDIS_SERVICE_NAME", "value": remote.sentinel.master_name}]
    source = connector_config.password_source(pool)
    if source is None:
        return []
    name, key = source
    password = {"name": "LMCACHE_RESP_PASSWORD", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}
    return [{"name": "LMCACHE_RESP_USERNAME", "value": remote.username}, password] if remote.username else [password]
