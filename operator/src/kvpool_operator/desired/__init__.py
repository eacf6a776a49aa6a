"""What shall exist for a pool: ``desired(pool) -> list of manifests``.

Pure: no client, no clock, no randomness. The same pool gives the same manifests, byte for byte; whoever applies them may
compare hashes. One module for each component; names and labels are in ``names``.
"""

from __future__ import annotations

from kvpool_operator.desired import connector_config, engines, grants, seed
from kvpool_operator.desired.pool import Manifest, Material, Pool
from kvpool_operator.desired.stores import redis

__all__ = ["Manifest", "Material", "Pool", "desired"]


def desired(pool: Pool) -> list[Manifest]:
    """Every child of the pool, in the order in which they are created: what others mount comes first.

    Raises:
        kvpool_connector.config.ConfigError: the connector's configuration cannot be made from this spec.
    """
    config = connector_config.build_configmap(pool)
    candidates = [
        redis.build_auth_secret(pool),
        seed.build_secret(pool),
        redis.build_configmap(pool),
        config,
        redis.build_service(pool),
        *(engines.build_service(pool, engine) for engine in pool.spec.engines),
        redis.build_deployment(pool),
        *(engines.build_deployment(pool, engine) for engine in pool.spec.engines),
        *grants.build(pool),
    ]
    return [manifest for manifest in candidates if manifest is not None]
