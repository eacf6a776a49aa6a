"""The contract between operator and connector: one configuration file, one pydantic model.

The operator imports this package to render the ConfigMap, the connector to read it. It imports neither torch nor
vllm, so that the operator's image can install it without them.
"""

from kvpool_connector.config.errors import ConfigError
from kvpool_connector.config.model import (
    CONFIG_VERSION,
    ConnectorConfig,
    CpuTier,
    PoolRef,
    Tiers,
)
from kvpool_connector.config.quantity import format_bytes, parse_quantity
from kvpool_connector.config.remote import (
    InfiniStoreRemote,
    LMCacheRemote,
    MooncakeRemote,
    RedisRemote,
    RemoteStore,
    Sentinel,
    Timeouts,
)
from kvpool_connector.config.sources import Found, find, load, parse
from kvpool_connector.names import ENV_CONFIG_FILE, ENV_CONFLICT_POLICY, ENV_ON_FAILURE

__all__ = [
    "CONFIG_VERSION",
    "ENV_CONFIG_FILE",
    "ENV_CONFLICT_POLICY",
    "ENV_ON_FAILURE",
    "ConfigError",
    "ConnectorConfig",
    "CpuTier",
    "Found",
    "InfiniStoreRemote",
    "LMCacheRemote",
    "MooncakeRemote",
    "PoolRef",
    "RedisRemote",
    "RemoteStore",
    "Sentinel",
    "Tiers",
    "Timeouts",
    "find",
    "format_bytes",
    "load",
    "parse",
    "parse_quantity",
]
