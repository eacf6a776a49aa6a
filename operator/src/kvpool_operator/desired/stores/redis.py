"""Redis and Valkey, one server, run by kvpool: Secret, configuration, Service, Deployment.

A Deployment and not a StatefulSet: there is no data to keep, and a Deployment replaces the Pod of a lost node by itself.
Each builder returns None for a pool whose store is external or absent.
"""

from __future__ import annotations

import base64
import hashlib

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import Backend, StoreType
from kvpool_operator.desired import names
from kvpool_operator.desired.files import digest, render
from kvpool_operator.desired.podpatch import merge, merge_templates
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import container_context, pod_basics

PORT = 6379
USERNAME = "kvpool"
COMPONENT = "store"
DEFAULT_MEMORY = "1Gi"
AUTH_DIRECTORY = "/etc/kvpool-store"
CONFIG_DIRECTORY = "/etc/kvpool-store-config"
PASSWORD_KEY = "password"  # noqa: S105  (the key's name, not a password)
ACL_KEY = "users.acl"
_MAX_MEMORY_SHARE = 0.85
_PASSWORD_VARIABLES = {StoreType.REDIS: ("REDISCLI_AUTH",), StoreType.VALKEY: ("VALKEYCLI_AUTH", "REDISCLI_AUTH")}
"""Where the command line clients look for a password. valkey-cli was called otherwise in its first versions."""


def max_memory(memory: str) -> int:
    """Bytes for blocks. The rest of the limit is the server's own: client buffers hold whole values, and memory fragments."""
    return int(parse_quantity(memory) * _MAX_MEMORY_SHARE)


def acl(password: str) -> str:
    """The server's users: ``default`` is shut, ``kvpool`` may use data but not administer the server.

    The file has the password's digest only.
    """
    hashed = hashlib.sha256(password.encode()).hexdigest()
    return f"user default off\nuser {USERNAME} on #{hashed} ~* &* +@all -@admin -@dangerous +info\n"


def build_auth_secret(pool: Pool) -> Manifest | None:
    if pool.spec.managed_store is None:
        return None
    content = {PASSWORD_KEY: pool.material.store_password, ACL_KEY: acl(pool.material.store_password)}
    return names.child(pool, "v1", "Secret", names.store_auth(pool), names.labels(pool, COMPONENT)) | {
        "type": "Opaque",
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in content.items()},
    }


def build_configmap(pool: Pool) -> Manifest | None:
    backend = pool.spec.managed_store
    if backend is None:
        return None
    return names.child(pool, "v1", "ConfigMap", names.store(pool), names.labels(pool, COMPONENT)) | {
        "data": {"redis.conf": _config_file(backend)}
    }


def _config_file(backend: Backend) -> str:
    return render(
        "redis.conf.j2",
        port=PORT,
        acl_file=f"{AUTH_DIRECTORY}/{ACL_KEY}",
        max_memory=max_memory(backend.memory or DEFAULT_MEMORY),
        eviction=backend.eviction or "allkeys-lru",
    )


def build_service(pool: Pool) -> Manifest | None:
    if pool.spec.managed_store is None:
        return None
    return names.child(pool, "v1", "Service", names.store(pool), names.labels(pool, COMPONENT)) | {
        "spec": {
            "selector": names.selector(pool, COMPONENT),
            "ports": [{"name": "redis", "port": PORT, "targetPort": "redis", "protocol": "TCP"}],
        }
    }


def build_deployment(pool: Pool) -> Manifest | None:
    backend = pool.spec.managed_store
    if backend is None:
        return None
    selector = names.selector(pool, COMPONENT)
    rolled_by = {"config": _config_file(backend), "secret": pool.material.store_secret_uid}
    template = {
        "metadata": {
            "labels": names.labels(pool, COMPONENT),
            "annotations": {names.CONFIG_HASH_ANNOTATION: digest(rolled_by)},
        },
        "spec": pod_basics()
        | {
            "terminationGracePeriodSeconds": 5,  # nothing is saved
            "containers": [_container(pool, backend)],
            "volumes": [
                {"name": "config", "configMap": {"name": names.store(pool)}},
                {
                    "name": "auth",
                    "secret": {
                        "secretName": names.store_auth(pool),
                        "defaultMode": 0o440,
                        "items": [{"key": ACL_KEY, "path": ACL_KEY}],
                    },
                },
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }
    return names.child(pool, "apps/v1", "Deployment", names.store(pool), names.labels(pool, COMPONENT)) | {
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # two servers behind one Service would each have half of the blocks
            "selector": {"matchLabels": selector},
            "template": merge_templates(template, pool.settings.store_defaults.pod_template, selector=selector),
        }
    }


def _container(pool: Pool, backend: Backend) -> Manifest:
    redis = backend.type is StoreType.REDIS
    server, client = ("redis-server", "redis-cli") if redis else ("valkey-server", "valkey-cli")
    default_image = pool.settings.images.redis if redis else pool.settings.images.valkey
    # PING as the user that engines are, so that "ready" means "usable". The password comes by the environment.
    ping = {"exec": {"command": [client, "-e", "--user", USERNAME, "ping"]}, "timeoutSeconds": 3}
    password = {"secretKeyRef": {"name": names.store_auth(pool), "key": PASSWORD_KEY}}
    return {
        "name": names.STORE_CONTAINER,
        "image": backend.image or default_image,
        "command": [server, f"{CONFIG_DIRECTORY}/redis.conf"],
        "env": [{"name": name, "valueFrom": password} for name in _PASSWORD_VARIABLES[backend.type]],
        "ports": [{"name": "redis", "containerPort": PORT, "protocol": "TCP"}],
        "resources": _resources(backend),
        "securityContext": container_context(),
        "startupProbe": ping | {"periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": ping | {"periodSeconds": 5, "failureThreshold": 2},
        # A server that is busy for seconds is not dead, and restarting it would lose every block.
        "livenessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
            {"name": "auth", "mountPath": AUTH_DIRECTORY, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (inside the container)
        ],
    }


def _resources(backend: Backend) -> Manifest:
    """Memory from ``memory``, as request and limit; the rest from ``resources``.

    Half a core as a request: every engine of the pool waits for this server, and on a busy node the request is its share.
    """
    memory = {"memory": backend.memory or DEFAULT_MEMORY}
    base: Manifest = {"requests": {"cpu": "500m", **memory}, "limits": dict(memory)}
    if backend.resources is None:
        return base
    wanted = backend.resources.model_dump(exclude_none=True)
    return merge(merge(base, wanted), {"requests": memory, "limits": memory})
