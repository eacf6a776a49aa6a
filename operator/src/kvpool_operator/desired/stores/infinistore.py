"""InfiniStore run by kvpool, over RDMA. Experimental: kvpool's authors have no RDMA devices and never ran it.

It writes its own oom_score_adj and locks its memory, so it runs as root with two capabilities: the namespace has to allow
Pod Security "privileged". Flags: ``infinistore --help`` of infinistore 0.2.35.
"""

from __future__ import annotations

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import Backend, StoreType
from kvpool_operator.desired import names
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import pod_basics
from kvpool_operator.desired.stores import parts

PORT = 22345
MANAGE_PORT = 18080
_SHARE = 0.8


def command(backend: Backend) -> list[str]:
    own = backend.infinistore
    gibibytes = max(int(parse_quantity(parts.memory(backend)) * _SHARE) >> 30, 1)
    return [
        "infinistore",
        f"--service-port={PORT}",
        f"--manage-port={MANAGE_PORT}",
        f"--prealloc-size={gibibytes}",
        f"--link-type={own.link_type if own else 'Ethernet'}",
        *([f"--dev-name={own.device}"] if own and own.device else []),
        "--enable-periodic-evict",
    ]


def build(pool: Pool) -> list[Manifest]:
    """Service, NetworkPolicy and Deployment; nothing for a pool with another store."""
    backend = pool.spec.managed(StoreType.INFINISTORE)
    if backend is None or backend.infinistore is None or backend.infinistore.rdma_resource is None:
        return []
    listening = {"tcpSocket": {"port": "service"}}
    container = {
        "name": names.STORE_CONTAINER,
        "image": backend.image,
        "command": command(backend),
        "ports": parts.container_ports({"service": PORT, "manage": MANAGE_PORT}),
        "resources": parts.block_resources(backend, limits={backend.infinistore.rdma_resource: 1}),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK", "SYS_RESOURCE"]},
        },
        "startupProbe": listening | {"periodSeconds": 2, "failureThreshold": 150},  # it locks all of its memory first
        "readinessProbe": listening | {"periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": listening | {"periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  (inside the container)
    }
    basics = pod_basics()
    spec = basics | {
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    template = parts.template(pool, parts.STORE, digest(command(backend)), spec)
    policy = parts.network_policy(
        pool,
        names.store(pool),
        parts.STORE,
        clients=[parts.tcp(PORT)],
        # The control plane can purge the store, and asks nobody for a password.
        others=[(parts.operator_pods(pool), [parts.tcp(MANAGE_PORT)])],
    )
    return [
        parts.service(pool, names.store(pool), parts.STORE, {"service": PORT}),
        policy,
        parts.deployment(pool, names.store(pool), parts.STORE, template),
    ]
