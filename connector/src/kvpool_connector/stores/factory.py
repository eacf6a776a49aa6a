"""One client for each kind of store: the only place that knows all of them."""

from __future__ import annotations

from kvpool_connector.config import InfiniStoreRemote, LMCacheRemote, MooncakeRemote, RedisRemote, RemoteStore
from kvpool_connector.stores.base import Store
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.infinistore import InfiniStore
from kvpool_connector.stores.lmcache import LMCacheStore
from kvpool_connector.stores.mooncake import MooncakeStore
from kvpool_connector.stores.redis import RedisStore


def make_store(config: RemoteStore, breaker: Breaker, *, lends: bool = False) -> Store:
    """A client. Nothing is sent before its first use.

    Args:
        breaker: shared by the clients of one process.
        lends: where engines lend a store memory, this client does so for its process.

    Raises:
        ConfigError: the client's own package is missing, or what it needs.
    """
    match config:
        case RedisRemote():
            return RedisStore(config, breaker)
        case LMCacheRemote():
            return LMCacheStore(config, breaker)
        case MooncakeRemote():
            return MooncakeStore(config, breaker, lends=lends)
        case InfiniStoreRemote():
            return InfiniStore(config, breaker)
