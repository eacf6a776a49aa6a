"""etcd for Mooncake: one member, or three that outlive the loss of one.

Members have fixed names and a volume each. A member that loses its volume does not come back by itself: delete the pool's
StatefulSet and claims, which costs what the masters knew, that is the cache. Plain HTTP: Mooncake's client has no TLS.
"""

from __future__ import annotations

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import StoreType
from kvpool_operator.api.stores import Etcd
from kvpool_operator.desired import names
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import container_context, pod_basics
from kvpool_operator.desired.stores import parts

CLIENT_PORT = 2379
PEER_PORT = 2380
COMPONENT = "etcd"
DEFAULT_MEMBERS = 3
DEFAULT_STORAGE = "2Gi"
DATA_DIRECTORY = "/var/lib/etcd"
_QUOTA_SHARE = 0.8
_QUOTA_MAXIMUM = 8 << 30
"""etcd warns above it: https://etcd.io/docs/v3.5/dev-guide/limit/."""


def settings(pool: Pool) -> Etcd | None:
    """The etcd that the pool's Mooncake needs: None when it needs none. It may be external."""
    backend = pool.spec.managed(StoreType.MOONCAKE)
    if backend is None or backend.mooncake is None or not backend.mooncake.needs_etcd:
        return None
    return backend.etcd or Etcd()


def endpoints(pool: Pool) -> tuple[str, ...]:
    """Members as host:port; empty when the pool needs no etcd."""
    etcd = settings(pool)
    if etcd is None:
        return ()
    if etcd.external is not None:
        return etcd.external.endpoints
    return tuple(f"{host}:{CLIENT_PORT}" for host in _hosts(pool, etcd))


def connection_string(pool: Pool) -> str:
    """As Mooncake's programs take it."""
    return "etcd://" + ";".join(endpoints(pool))


def _hosts(pool: Pool, etcd: Etcd) -> list[str]:
    name = names.etcd(pool)
    return [names.member_host(pool, name, number, name) for number in range(etcd.replicas or DEFAULT_MEMBERS)]


def arguments(pool: Pool, etcd: Etcd) -> list[str]:
    """The member's flags; Kubernetes puts the Pod's name in."""
    name = names.etcd(pool)
    own = names.member_host(pool, name, "", name).removeprefix(f"{name}-")
    quota = min(int(parse_quantity(etcd.storage or DEFAULT_STORAGE) * _QUOTA_SHARE), _QUOTA_MAXIMUM)
    members = [f"{name}-{number}=http://{host}:{PEER_PORT}" for number, host in enumerate(_hosts(pool, etcd))]
    return [
        "--name=$(POD_NAME)",
        f"--data-dir={DATA_DIRECTORY}/data",
        f"--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}",
        f"--advertise-client-urls=http://$(POD_NAME){own}:{CLIENT_PORT}",
        f"--listen-peer-urls=http://0.0.0.0:{PEER_PORT}",
        f"--initial-advertise-peer-urls=http://$(POD_NAME){own}:{PEER_PORT}",
        f"--initial-cluster={','.join(members)}",
        "--initial-cluster-state=new",
        f"--initial-cluster-token={pool.namespace}-{pool.name}",
        f"--quota-backend-bytes={quota}",
        # Mooncake rewrites a few keys all the time; old versions are of no use to it.
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=10m",
    ]


def build(pool: Pool) -> list[Manifest]:
    """All of it; nothing for a pool that needs no etcd or uses one of the user's."""
    etcd = settings(pool)
    if etcd is None or etcd.external is not None:
        return []
    name = names.etcd(pool)
    ports = {"client": CLIENT_PORT, "peer": PEER_PORT}
    return [
        parts.service(pool, name, COMPONENT, ports, headless=True),
        parts.budget(pool, name, COMPONENT),
        _network_policy(pool),
        _stateful_set(pool, etcd, ports),
    ]


def _network_policy(pool: Pool) -> Manifest:
    return parts.network_policy(
        pool,
        names.etcd(pool),
        COMPONENT,
        clients=[parts.tcp(CLIENT_PORT)],
        others=[(parts.component_pods(pool, COMPONENT), [parts.tcp(PEER_PORT)])],
    )


def _stateful_set(pool: Pool, etcd: Etcd, ports: dict[str, int]) -> Manifest:
    name = names.etcd(pool)
    flags = arguments(pool, etcd)
    # It fails without a leader: then the member is of no use to anybody.
    health = {"httpGet": {"path": "/health", "port": "client"}, "timeoutSeconds": 5}
    container = {
        "name": names.STORE_CONTAINER,
        "image": etcd.image or pool.settings.images.etcd,
        "command": ["etcd"],
        "args": flags,
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "ports": parts.container_ports(ports),
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": container_context(),
        "startupProbe": {"tcpSocket": {"port": "client"}, "periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": health | {"periodSeconds": 5, "failureThreshold": 3},
        # Not /health: restarting the members that are left does not bring a quorum back.
        "livenessProbe": {"tcpSocket": {"port": "client"}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [{"name": "data", "mountPath": DATA_DIRECTORY}],
    }
    spec = pod_basics() | {
        "terminationGracePeriodSeconds": 30,
        "affinity": parts.affinity(pool, COMPONENT),
        "containers": [container],
    }
    template = parts.template(pool, COMPONENT, digest(flags), spec)
    manifest = parts.stateful_set(
        pool, name, COMPONENT, template, replicas=etcd.replicas or DEFAULT_MEMBERS, service_name=name
    )
    storage_class = {"storageClassName": etcd.storage_class_name} if etcd.storage_class_name else {}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "labels": names.labels(pool, COMPONENT)},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": etcd.storage or DEFAULT_STORAGE}},
            **storage_class,
        },
    }
    manifest["spec"] |= {
        "volumeClaimTemplates": [claim],
        # What it knows is worth nothing without the stores, which end with the pool.
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
    }
    return manifest
