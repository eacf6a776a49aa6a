"""``lmcache_server`` run by kvpool: a dictionary behind TCP.

It never evicts, so it grows until its memory limit ends it, empty again; it has no replication,
no authentication and no metrics. Status says so. Its NetworkPolicy is its only lock. It is one Pod:
replicas behind one Service would each have half of the blocks.
"""

from __future__ import annotations

from kvpool_operator.api import StoreType
from kvpool_operator.desired import names
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import container_context, pod_basics
from kvpool_operator.desired.stores import parts

PORT = 65432
COMMAND = ["lmcache_server", "0.0.0.0", str(PORT)]  # noqa: S104  (inside the Pod)


def build(pool: Pool) -> list[Manifest]:
    """Service, NetworkPolicy and Deployment; nothing for a pool with another store."""
    backend = pool.spec.managed(StoreType.LMCACHE_SERVER)
    if backend is None:
        return []
    listening = {"tcpSocket": {"port": "lm"}}
    container = {
        "name": names.STORE_CONTAINER,
        "image": backend.image or pool.settings.images.lmcache,
        "command": COMMAND,
        # Its package imports torch, which looks for places to write.
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108  (inside the container)
        "ports": parts.container_ports({"lm": PORT}),
        "resources": parts.block_resources(backend),
        "securityContext": container_context(),
        "startupProbe": listening | {"periodSeconds": 1, "failureThreshold": 300},
        "readinessProbe": listening | {"periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": listening | {"periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    spec = pod_basics() | {
        "terminationGracePeriodSeconds": 5,  # nothing is saved
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    template = parts.template(pool, parts.STORE, digest(COMMAND), spec)
    return [
        parts.service(pool, names.store(pool), parts.STORE, {"lm": PORT}),
        parts.network_policy(pool, names.store(pool), parts.STORE, clients=[parts.tcp(PORT)]),
        parts.deployment(pool, names.store(pool), parts.STORE, template),
    ]
