"""LMCache's server on each node, and the connector that talks to it.

A DaemonSet, and a Service that leads each engine to the server of its own node. The server copies nothing from a GPU
(``engine_driven``: engines send their blocks), so it needs neither the host's IPC nor devices, and CPU engines are served too.
It asks nobody for a password: its NetworkPolicy is its only lock. A ``podTemplate`` of
``spec.connector.server`` with ``hostNetwork`` takes that lock away: such Pods have their node's
address, and no policy for Pods holds what reaches a node.
Facts are those of lmcache 0.5.6: flags ``lmcache server --help``, the L2 store ``v1/distributed/l2_adapters/resp_l2_adapter.py``.
"""

from __future__ import annotations

import json
from typing import Any

from kvpool_connector.config import ConfigError
from kvpool_connector.config.remote import RedisRemote
from kvpool_operator.desired import connector_config, names, sizing
from kvpool_operator.desired.connectors import lmcache
from kvpool_operator.desired.connectors.part import EnginePart
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.podpatch import merge_templates
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import container_context, pod_basics
from kvpool_operator.desired.stores import parts

COMPONENT = "lmcache"
PORT, HTTP_PORT = 5555, 8080
OVERHEAD = 1 << 30
"""Python, torch and the server's own buffers next to the blocks."""


def engine_part(pool: Pool) -> EnginePart:
    """Nothing but the server's address."""
    host = f"tcp://{names.service_host(pool, names.lmcache(pool))}"
    return EnginePart(transfer_to(host, PORT), [lmcache.NO_USAGE_REPORTS])


def transfer_to(host: str, port: int) -> dict[str, Any]:
    """``kv_transfer_config`` of an engine whose server is at this ZeroMQ address.

    The module path makes vLLM load LMCache's own class and not the older copy that it bundles.
    """
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"lmcache.mp.host": host, "lmcache.mp.port": port},
    }


def server_arguments(pool: Pool, *, host: str = "0.0.0.0", port: int = PORT, http_port: int = HTTP_PORT) -> list[str]:  # noqa: S104
    """Arguments of ``lmcache``.

    Raises:
        ConfigError: LMCache's server cannot use this store in this way.
    """
    gibibytes = connector_config.cpu_tier_bytes(pool) / 2**30
    arguments = [
        "server", "--host", host, "--port", str(port), "--http-host", host, "--http-port", str(http_port),
        "--l1-size-gb", f"{gibibytes:.3f}".rstrip("0").rstrip("."), "--eviction-policy", "LRU",
        "--supported-transfer-mode", "engine_driven",
    ]  # fmt: skip
    remote = connector_config.build(pool).remote
    if remote is None:
        return arguments
    if not isinstance(remote, RedisRemote) or remote.host is None or remote.database:
        raise ConfigError(
            "spec.connector.type LMCacheMP knows a lone Redis or Valkey server with database 0: change spec.backend, or set "
            "spec.connector.type to KVPool"
        )
    return [*arguments, "--l2-adapter", json.dumps({"type": "resp", "host": remote.host, "port": remote.port})]


def memory(pool: Pool) -> int:
    """Bytes that the server takes: the tier of all engines of its node."""
    return connector_config.cpu_tier_bytes(pool) + OVERHEAD


def children(pool: Pool) -> list[Manifest]:
    """Return Service, NetworkPolicy and DaemonSet.

    Raises:
        ConfigError: as :func:`server_arguments`.
    """
    return [_service(pool), _network_policy(pool), _daemon_set(pool)]


def _network_policy(pool: Pool) -> Manifest:
    """Return the policy that leaves blocks to engines and consumers.

    The HTTP port is for the kubelet alone, whose probes no policy holds off.
    """
    return parts.network_policy(pool, names.lmcache(pool), COMPONENT, clients=[parts.tcp(PORT)])


def _service(pool: Pool) -> Manifest:
    return names.child(pool, "v1", "Service", names.lmcache(pool), names.labels(pool, COMPONENT)) | {
        "spec": {
            "selector": names.selector(pool, COMPONENT),
            "internalTrafficPolicy": "Local",  # blocks of another node's server would cross the network twice
            "ports": [{"name": "zmq", "port": PORT, "targetPort": "zmq", "protocol": "TCP"}],
        }
    }


def _daemon_set(pool: Pool) -> Manifest:
    selector = names.selector(pool, COMPONENT)
    rolled_by = {"arguments": server_arguments(pool), "secret": pool.material.store_secret_uid}
    template = {
        "metadata": {
            "labels": names.labels(pool, COMPONENT),
            "annotations": {names.CONFIG_HASH_ANNOTATION: digest(rolled_by)},
        },
        "spec": pod_basics()
        | {
            "terminationGracePeriodSeconds": 10,
            "containers": [_container(pool)],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
    server = pool.spec.connector.server
    return names.child(pool, "apps/v1", "DaemonSet", names.lmcache(pool), names.labels(pool, COMPONENT)) | {
        "spec": {
            "selector": {"matchLabels": selector},
            "template": merge_templates(template, server.pod_template if server else None, selector=selector),
        }
    }


def _container(pool: Pool) -> Manifest:
    server = pool.spec.connector.server
    size = sizing.quantity(memory(pool))
    health = {"httpGet": {"path": "/healthcheck", "port": "http"}, "timeoutSeconds": 5}
    return {
        "name": names.LMCACHE_CONTAINER,
        "image": (server.image if server else None) or pool.settings.images.lmcache,
        "command": ["lmcache"],
        "args": server_arguments(pool),
        "env": [
            {"name": "HOME", "value": "/tmp"},  # noqa: S108  (caches need a writable place)
            lmcache.NO_USAGE_REPORTS,
            *lmcache.store_variables(pool),
        ],
        "ports": [
            {"name": "zmq", "containerPort": PORT, "protocol": "TCP"},
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
        ],
        "resources": {"requests": {"cpu": "500m", "memory": size}, "limits": {"memory": size}},
        "securityContext": container_context(),
        "startupProbe": health | {"periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": health | {"periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": health | {"periodSeconds": 15, "failureThreshold": 6},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  (inside the container)
    }
