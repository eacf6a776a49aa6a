"""One client for each kind of store: the only place that knows all of them."""

from __future__ import annotations

from kvpool_connector.config import InfiniStoreRemote, LMCacheRemote, MooncakeRemote, RedisRemote, RemoteStore
from kvpool_connector.stores.base import Store
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.caller import rows_of_call
from kvpool_connector.stores.infinistore import InfiniStore
from kvpool_connector.stores.lmcache import LMCacheStore
from kvpool_connector.stores.memory import Memory
from kvpool_connector.stores.mooncake import MooncakeStore
from kvpool_connector.stores.native import MOST_KEYS
from kvpool_connector.stores.redis import RedisStore


def make_store(config: RemoteStore, breaker: Breaker, memory: Memory | None = None, *, lends: bool = False) -> Store:
    """A client. Nothing is sent before its first use.

    Args:
        breaker: shared by the clients of one process.
        memory: where all buffers lie; not needed where no value is moved, nor by clients of our own.
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
            return MooncakeStore(config, breaker, memory, lends=lends)
        case InfiniStoreRemote():
            return InfiniStore(config, breaker, memory)


def most_lent(config: RemoteStore | None, row_bytes: int, rows: int) -> int:
    """Rows of an arena that are set aside for those that a read may leave lent, see `Store.lent`: as many as one call of a
    package's own client shall fill."""
    if not isinstance(config, MooncakeRemote | InfiniStoreRemote):
        return 0
    return min(rows_of_call(row_bytes, rows), MOST_KEYS)
