"""What shall exist for a pool: ``desired(pool) -> list of manifests``.

Pure: no client, no clock, no randomness. The same pool gives the same manifests, byte for byte; whoever applies them may
compare hashes. One module for each component; names and labels are in ``names``.
"""

from __future__ import annotations

from kvpool_operator.desired import connector_files, connectors, engines, grants, seed, stores
from kvpool_operator.desired.pool import Manifest, Material, Pool

__all__ = ["Manifest", "Material", "Pool", "desired"]


def desired(pool: Pool) -> list[Manifest]:
    """Every child of the pool, in the order in which they are created: what others mount comes first.

    Raises:
        kvpool_connector.config.ConfigError: the connector's configuration cannot be made from this spec.
    """
    manifests = [
        *stores.build(pool),
        seed.build_secret(pool),
        *connector_files.build(pool),
        *connectors.children(pool),
        *(engines.build_service(pool, engine) for engine in pool.spec.engines),
        *(engines.build_workload(pool, engine) for engine in pool.spec.engines),
        *grants.build(pool),
    ]
    return sorted(manifests, key=lambda manifest: _ORDER.index(manifest["kind"]))


_ORDER = (
    "Secret",
    "ConfigMap",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
    "DaemonSet",
    "Deployment",
    "StatefulSet",
)
"""What Pods mount and what protects them is there before they are."""
