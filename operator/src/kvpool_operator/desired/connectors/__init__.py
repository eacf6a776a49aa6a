"""What each type of connector adds to a pool: settings of the engines, a configuration file, servers of its own.

One module for each type; pure, as everything in ``desired``. All raise ``kvpool_connector.config.ConfigError`` for a spec that
the connector would refuse.
"""

from __future__ import annotations

from kvpool_operator.api import ConnectorType, Engine
from kvpool_operator.desired import connector_config
from kvpool_operator.desired.connectors import kvpool, lmcache, lmcache_mp, native
from kvpool_operator.desired.connectors.part import EnginePart
from kvpool_operator.desired.pool import Manifest, Pool

__all__ = ["EnginePart", "children", "engine_part", "files", "keeps_password"]


def engine_part(pool: Pool, engine: Engine) -> EnginePart:
    """What the pool's connector adds to an engine."""
    match pool.spec.connector.type:
        case ConnectorType.KVPOOL:
            return kvpool.engine_part(pool, engine)
        case ConnectorType.LMCACHE:
            return lmcache.engine_part(pool)
        case ConnectorType.LMCACHE_MP:
            return lmcache_mp.engine_part(pool)
        case ConnectorType.NATIVE:
            return native.engine_part(pool)


def files(pool: Pool) -> dict[str, str]:
    """What engines find in the connector's directory; empty for a connector that is told all by arguments."""
    match pool.spec.connector.type:
        case ConnectorType.KVPOOL:
            return {connector_config.FILE: connector_config.text(pool)}
        case ConnectorType.LMCACHE:
            return {lmcache.FILE: lmcache.text(connector_config.build(pool))}
        case _:
            return {}


def keeps_password(pool: Pool) -> bool:
    """Return whether engines keep the store's password that they were started with.

    LMCache reads it from its environment. kvpool reads its file whenever it connects, and other
    engines know no password.
    """
    return pool.spec.connector.type is ConnectorType.LMCACHE


def children(pool: Pool) -> list[Manifest]:
    """Servers beside the engines."""
    return lmcache_mp.children(pool) if pool.spec.connector.type is ConnectorType.LMCACHE_MP else []
