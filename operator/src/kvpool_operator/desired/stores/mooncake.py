"""Mooncake run by kvpool: masters that know where blocks are, and stores that hold them.

One master is a Deployment that ends before its successor starts; what it knew is lost with it. Three masters (``ha``) share
what they know through etcd and its operation log; one of them serves. Stores are a StatefulSet of ``mooncake_client``, which
gives memory and has no HTTP interface that changes anything, unlike Mooncake's REST service.

Facts, seen with mooncake-transfer-engine 0.3.13.post1: clients listen on ports of their own choice unless the environment
names ranges; the program reads MC_MIN_PRC_PORT as it is misspelt, and MC_MIN_RPC_PORT. A standby's /health and /role answer 200
like a leader's, so the readiness of an HA master is what /leader says. The admin port has no authentication.
"""

from __future__ import annotations

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import Backend, StoreType
from kvpool_operator.api.stores import Mooncake
from kvpool_operator.desired import names
from kvpool_operator.desired.files import digest, to_yaml
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import container_context, pod_basics
from kvpool_operator.desired.stores import etcd, mooncake_leave, parts

MASTER = "master"
RPC_PORT = 50051
ADMIN_PORT = 9003
CLIENT_HTTP_PORT = 9300
NAME_PORTS = (12300, 12309)
DATA_PORTS = (15000, 15019)
"""Handshakes and data: mooncake_client takes two of them, and some tries when one is in use."""
MASTERS = 3
CONFIG_DIRECTORY = "/etc/kvpool-master"
CONFIG_FILE = "master.yaml"
P2P = "P2PHANDSHAKE"
_LOCAL_BUFFER = 16 << 20
_PROCESS = 64 << 20
"""58 MB resident when idle."""
_SPARE = 1.15
_GRANULE = 16 << 20


def settings(backend: Backend) -> Mooncake:
    return backend.mooncake or Mooncake()


def segment_bytes(memory: str) -> int:
    """Bytes of one store for blocks: below the memory limit by the buffers and 15 %, in whole granules of 16 MiB.

    At least one granule; the API's rules ask for 256Mi.
    """
    room = int(parse_quantity(memory) / _SPARE) - _LOCAL_BUFFER - _PROCESS
    return max(room // _GRANULE, 1) * _GRANULE


def master_address(pool: Pool) -> str:
    """As clients take it: etcd names the leader of several."""
    backend = pool.spec.managed(StoreType.MOONCAKE)
    if backend is not None and settings(backend).ha:
        return etcd.connection_string(pool)
    return f"{names.service_host(pool, names.master(pool))}:{RPC_PORT}"


def metadata_server(pool: Pool, backend: Backend) -> str:
    return etcd.connection_string(pool) if settings(backend).metadata == "Etcd" else P2P


def master_config(pool: Pool, backend: Backend) -> str:
    """The master's configuration file."""
    content: dict[str, object] = {
        "rpc_port": RPC_PORT,
        "metrics_port": ADMIN_PORT,
        "enable_metric_reporting": False,
        # A put that finds no room fails. Evicting earlier and more at once keeps that rare.
        "eviction_high_watermark_ratio": 0.9,
        "eviction_ratio": 0.1,
        "client_ttl": 10,
    }
    if settings(backend).ha:
        content |= {
            "enable_ha": True,
            "enable_oplog": True,
            "ha_backend_type": "etcd",
            "etcd_endpoints": ";".join(etcd.endpoints(pool)),
        }
    return "# Written by kvpool.\n" + to_yaml(content)


def build(pool: Pool) -> list[Manifest]:
    """Masters, stores, and etcd where they need it; nothing for a pool without a Mooncake of kvpool's."""
    backend = pool.spec.managed(StoreType.MOONCAKE)
    if backend is None:
        return []
    mooncake = settings(backend)
    master_ports = {"rpc": RPC_PORT, "admin": ADMIN_PORT}
    return [
        *etcd.build(pool),
        parts.config_map(pool, names.master(pool), MASTER, {CONFIG_FILE: master_config(pool, backend)}),
        parts.service(pool, names.master(pool), MASTER, master_ports),
        parts.service(pool, names.members(pool), parts.STORE, {"http": CLIENT_HTTP_PORT}, headless=True),
        *([parts.budget(pool, names.master(pool), MASTER)] if mooncake.ha else []),
        *([parts.budget(pool, names.store(pool), parts.STORE)] if (mooncake.replicas or 1) > 1 else []),
        *_network_policies(pool),
        _masters(pool, backend),
        _stores(pool, backend),
    ]


def _network_policies(pool: Pool) -> list[Manifest]:
    """Blocks and their index for Pods of the pool. Administration, which can delete everything and knows no password, for the
    operator's namespace, and for the stores, which say there that they leave."""
    operator = parts.operator_pods(pool)
    administrators = [*operator, *parts.component_pods(pool, parts.STORE)]
    return [
        parts.network_policy(
            pool,
            names.master(pool),
            MASTER,
            clients=[parts.tcp(RPC_PORT)],
            others=[(administrators, [parts.tcp(ADMIN_PORT)])],
        ),
        parts.network_policy(
            pool,
            names.store(pool),
            parts.STORE,
            clients=[parts.tcp(*NAME_PORTS), parts.tcp(*DATA_PORTS)],
            others=[(operator, [parts.tcp(CLIENT_HTTP_PORT)])],
        ),
    ]


def _pod_ip() -> Manifest:
    return {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def master_command(ha: bool) -> list[str]:
    """In HA the address that the leader announces is the Pod's own."""
    own = ["--rpc_address=$(POD_IP)"] if ha else []
    return ["mooncake_master", f"--config_path={CONFIG_DIRECTORY}/{CONFIG_FILE}", *own]


LEADER_IS_KNOWN = (
    "exec 3<>/dev/tcp/127.0.0.1/{port}; "
    "printf 'GET /leader HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3; "
    "timeout 2 cat <&3 | grep -q '\"present\":true'"
)
"""For bash. A master that knows of no leader, itself included, is of no use: etcd is away, or the election goes on. It keeps a
connection open until it is asked to close it, also one of HTTP/1.0."""


def _masters(pool: Pool, backend: Backend) -> Manifest:
    mooncake = settings(backend)
    ha = bool(mooncake.ha)
    readiness: Manifest = {"tcpSocket": {"port": "rpc"}, "timeoutSeconds": 3}
    if ha:
        command = ["bash", "-c", LEADER_IS_KNOWN.format(port=ADMIN_PORT)]
        readiness = {"exec": {"command": command}, "timeoutSeconds": 5}
    health = {"httpGet": {"path": "/health", "port": "admin"}, "timeoutSeconds": 5}
    resources: Manifest = {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
    container = {
        "name": names.STORE_CONTAINER,
        "image": backend.image or pool.settings.images.mooncake,
        "command": master_command(ha),
        "env": [_pod_ip()],
        "ports": parts.container_ports({"rpc": RPC_PORT, "admin": ADMIN_PORT}),
        "resources": parts.with_resources(resources, mooncake.master_resources),
        "securityContext": container_context(),
        "startupProbe": health | {"periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": readiness | {"periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": health | {"periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (inside the container)
        ],
    }
    spec = pod_basics() | {
        "terminationGracePeriodSeconds": 10,
        "affinity": parts.affinity(pool, MASTER),
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": names.master(pool)}}, {"name": "tmp", "emptyDir": {}}],
    }
    template = parts.template(pool, MASTER, digest(master_config(pool, backend)), spec)
    manifest = parts.deployment(pool, names.master(pool), MASTER, template)
    if ha:
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
        manifest["spec"] |= {"replicas": MASTERS, "strategy": rolling}
    return manifest


def store_command(pool: Pool, backend: Backend) -> list[str]:
    mooncake = settings(backend)
    devices = mooncake.rdma.devices if mooncake.rdma else None
    return [
        "mooncake_client",
        "--host=$(POD_IP)",
        f"--master_server_address={master_address(pool)}",
        f"--metadata_server={metadata_server(pool, backend)}",
        f"--protocol={mooncake.protocol.lower()}",
        *([f"--device_names={devices}"] if devices else []),
        f"--global_segment_size={segment_bytes(parts.memory(backend))}",
        f"--local_buffer_size={_LOCAL_BUFFER}",
        "--enable_http_server=true",
        f"--http_port={CLIENT_HTTP_PORT}",
    ]


def port_ranges() -> dict[str, str]:
    """Environment of a client that a NetworkPolicy protects."""
    ranges = {"MC_STORE_CLIENT_{}_PORT": NAME_PORTS, "MC_{}_PRC_PORT": DATA_PORTS, "MC_{}_RPC_PORT": DATA_PORTS}
    return {
        name.format(end): str(port)
        for name, (first, last) in ranges.items()
        for end, port in (("MIN", first), ("MAX", last))
    }


def _stores(pool: Pool, backend: Backend) -> Manifest:
    mooncake = settings(backend)
    command = mooncake_leave.ended_by_sigterm(store_command(pool, backend))
    leave = mooncake_leave.command(names.service_host(pool, names.master(pool)), ADMIN_PORT)
    rdma = mooncake.rdma.resource if mooncake.protocol == "RDMA" and mooncake.rdma else None
    # 200 only while the segment is mounted, that is, while the master knows this store.
    health = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    container = {
        "name": names.STORE_CONTAINER,
        "image": backend.image or pool.settings.images.mooncake,
        "command": command,
        "env": [_pod_ip(), *({"name": name, "value": value} for name, value in port_ranges().items())],
        "ports": parts.container_ports({"http": CLIENT_HTTP_PORT}),
        "resources": parts.block_resources(backend, limits={rdma: 1} if rdma else None),
        "securityContext": rdma_context() if rdma else container_context(),
        # It gives up by itself when there is no master, and the kubelet starts it again.
        "startupProbe": health | {"periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": health | {"periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": leave}}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  (inside the container)
    }
    spec = pod_basics() | {
        "terminationGracePeriodSeconds": mooncake_leave.GRACE_SECONDS,
        "affinity": parts.affinity(pool, parts.STORE),
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    rolled_by = digest({"command": command, "environment": port_ranges()})
    template = parts.template(pool, parts.STORE, rolled_by, spec)
    return parts.stateful_set(
        pool,
        names.store(pool),
        parts.STORE,
        template,
        replicas=mooncake.replicas or 1,
        service_name=names.members(pool),
    )


def rdma_context() -> Manifest:
    """Registered memory is locked memory. Pod Security "restricted" does not allow it."""
    return container_context() | {"capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}}
