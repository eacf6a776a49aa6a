"""Redis and Valkey run by kvpool: users, configuration, the server's container; and the lone server (Deployment and Service).

A lone server is a Deployment and not a StatefulSet: there is no data to keep, and a Deployment replaces the Pod of a lost
node by itself. A group with sentinels is in ``sentinel``. Each builder returns None for a pool whose store is another one.
"""

from __future__ import annotations

import base64
import hashlib

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import Backend, StoreType
from kvpool_operator.desired import names
from kvpool_operator.desired.files import digest, render
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import container_context, pod_basics
from kvpool_operator.desired.stores import parts

PORT = 6379
USERNAME = "kvpool"
GROUP_USERNAME = "kvpool-group"
"""As which servers of a group follow each other, and sentinels direct them."""
COMPONENT = parts.STORE
DEFAULT_MEMORY = parts.DEFAULT_MEMORY
AUTH_DIRECTORY = "/etc/kvpool-store"
CONFIG_DIRECTORY = "/etc/kvpool-store-config"
OWN_USERNAME = "kvpool-own"
"""As whom a container talks to its own server; its password is drawn at each start and never leaves the container."""
PASSWORD_KEY = "password"  # noqa: S105  (the key's name, not a password)
ACL_KEY = "users.acl"
_MAX_MEMORY_SHARE = 0.85
_MAX_MEMORY_SHARE_IN_GROUP = 0.75
"""Lower: what replicas have not taken yet is buffered beside the blocks."""
_PASSWORD_VARIABLES = {StoreType.REDIS: ("REDISCLI_AUTH",), StoreType.VALKEY: ("VALKEYCLI_AUTH", "REDISCLI_AUTH")}
"""Where the command line clients look for a password. valkey-cli was called otherwise in its first versions."""
_GROUP_COMMANDS = (
    "+multi +exec +slaveof +replicaof +ping +auth +hello +subscribe +publish +config|rewrite +role +info "
    "+client|setname +client|kill +script|kill +psync +replconf"
)
"""Source: https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/, "ACL rules for Sentinel and replicas"."""


def max_memory(memory: str, *, in_group: bool = False) -> int:
    """Bytes for blocks. The rest of the limit is the server's own: client buffers hold whole values, and memory fragments."""
    return int(parse_quantity(memory) * (_MAX_MEMORY_SHARE_IN_GROUP if in_group else _MAX_MEMORY_SHARE))


def password_digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def passwords(password: str, former_digest: str) -> str:
    """Return the part of an ACL line that says by which passwords the engines' user is let in."""
    digests = filter(None, (password_digest(password), former_digest))
    return " ".join(f"#{digest_}" for digest_ in digests)


def former_digest(users: str, password: str) -> str:
    """Return the digest of the password that an ACL file was made for, if it is another one; else that of the one before, which
    the file has as well; empty: there is none."""
    line = next((line for line in users.splitlines() if line.startswith(f"user {USERNAME} ")), "")
    digests = [word.removeprefix("#") for word in line.split() if word.startswith("#")]
    return next((known for known in digests if known != password_digest(password)), "")


def acl(password: str, group_password: str = "", former: str = "") -> str:
    """The server's users: ``default`` is shut, ``kvpool`` may use data but not administer the server.

    The file has digests of passwords only.

    Args:
        group_password: of the user of a fail-over group; empty: a lone server has none.
        former: digest of a password that is valid as well; empty: there is none.
    """
    users = f"user default off\nuser {USERNAME} on {passwords(password, former)} ~* &* +@all -@admin -@dangerous +info +role\n"
    if group_password:
        users += f"user {GROUP_USERNAME} on #{password_digest(group_password)} &* {_GROUP_COMMANDS}\n"
    return users


def build_auth_secret(pool: Pool) -> Manifest | None:
    """Return the Secret that engines mount and in which people and tools change the password."""
    if pool.spec.managed_redis is None:
        return None
    return secret(pool, names.store_auth(pool), {PASSWORD_KEY: pool.material.store_password})


def build_users_secret(pool: Pool) -> Manifest | None:
    """Return the Secret that servers mount.

    It is the operator's alone: a tool that replaces the other one as a whole leaves the digest of the
    former password here.
    """
    if pool.spec.managed_redis is None:
        return None
    material = pool.material
    group_password = material.group_password if pool.spec.uses_sentinels else ""
    users = acl(material.store_password, group_password, material.former_digest)
    return secret(pool, names.store_users(pool), {ACL_KEY: users})


def secret(pool: Pool, name: str, content: dict[str, str]) -> Manifest:
    return names.child(pool, "v1", "Secret", name, names.labels(pool, COMPONENT)) | {
        "type": "Opaque",
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in content.items()},
    }


def config_file(backend: Backend, *, in_group: bool = False) -> str:
    return render(
        "redis.conf.j2",
        port=PORT,
        max_memory=max_memory(parts.memory(backend), in_group=in_group),
        eviction=backend.eviction or "allkeys-lru",
        in_group=in_group,
    )


def _lone(pool: Pool) -> Backend | None:
    return None if pool.spec.uses_sentinels else pool.spec.managed_redis


def build_configmap(pool: Pool) -> Manifest | None:
    backend = _lone(pool)
    if backend is None:
        return None
    return parts.config_map(pool, names.store(pool), COMPONENT, _files(backend))


def _files(backend: Backend) -> dict[str, str]:
    """Configuration and scripts of a lone server."""
    common = script_values(backend)
    return {
        "redis.conf": config_file(backend),
        "users.sh": render("users.sh.j2", **common),
        "ping.sh": render("ping.sh.j2", **common),
        "start-lone.sh": render("start-lone.sh.j2", **common),
    }


def script_values(backend: Backend) -> dict[str, object]:
    """What the templates of all scripts take."""
    server, client = programs(backend)
    return {
        "server": server,
        "client": client,
        "port": PORT,
        "own_user": OWN_USERNAME,
        "users_file": ACL_KEY,
        "config_directory": CONFIG_DIRECTORY,
        "auth_directory": AUTH_DIRECTORY,
    }


def build_service(pool: Pool) -> Manifest | None:
    if _lone(pool) is None:
        return None
    return parts.service(pool, names.store(pool), COMPONENT, {"redis": PORT})


def network_policy(pool: Pool) -> Manifest:
    """Return the policy of the servers, of a lone one and of a group alike.

    Servers of a group follow each other, and sentinels direct them, as Pods of the pool.
    """
    return parts.network_policy(pool, names.store(pool), COMPONENT, clients=[parts.tcp(PORT)])


def build_deployment(pool: Pool) -> Manifest | None:
    backend = _lone(pool)
    if backend is None:
        return None
    # The Secret is not part of it: the server takes over who may log in while it runs.
    rolled_by = digest({"config": _files(backend)})
    spec = pod_basics() | {
        "terminationGracePeriodSeconds": 5,  # nothing is saved
        "containers": [container(pool, backend, ["sh", f"{CONFIG_DIRECTORY}/start-lone.sh"])],
        "volumes": volumes(pool),
    }
    return parts.deployment(pool, names.store(pool), COMPONENT, parts.template(pool, COMPONENT, rolled_by, spec))


def build(pool: Pool) -> list[Manifest]:
    """The lone server."""
    built = (
        build_auth_secret(pool),
        build_users_secret(pool),
        build_configmap(pool),
        build_service(pool),
        build_deployment(pool),
    )
    policies = [network_policy(pool)] if _lone(pool) is not None else []
    return [*(manifest for manifest in built if manifest is not None), *policies]


def programs(backend: Backend) -> tuple[str, str]:
    """Server and command line client."""
    return ("redis-server", "redis-cli") if backend.type is StoreType.REDIS else ("valkey-server", "valkey-cli")


def image(pool: Pool, backend: Backend) -> str:
    images = pool.settings.images
    return backend.image or (images.redis if backend.type is StoreType.REDIS else images.valkey)


def password_variables(pool: Pool, backend: Backend) -> list[Manifest]:
    """The password of the engines' user at the container's start, where the command line client looks for it.

    For people who look into the store by ``kubectl exec``: probes have the container's own user.
    """
    source = {"secretKeyRef": {"name": names.store_auth(pool), "key": PASSWORD_KEY}}
    return [{"name": name, "valueFrom": source} for name in _PASSWORD_VARIABLES[backend.type]]


def volumes(pool: Pool) -> list[Manifest]:
    users = {
        "secretName": names.store_users(pool),
        "defaultMode": 0o440,
        "items": [{"key": ACL_KEY, "path": ACL_KEY}],
    }
    return [
        {"name": "config", "configMap": {"name": names.store(pool)}},
        {"name": "auth", "secret": users},
        {"name": "tmp", "emptyDir": {}},
    ]


def mounts() -> list[Manifest]:
    return [
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "auth", "mountPath": AUTH_DIRECTORY, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (inside the container)
    ]


def ping_probe(port: int) -> Manifest:
    """Return the part of a probe that asks a container's own server or sentinel for an answer."""
    return {"exec": {"command": ["sh", f"{CONFIG_DIRECTORY}/ping.sh", "127.0.0.1", str(port)]}, "timeoutSeconds": 3}


def container(pool: Pool, backend: Backend, command: list[str]) -> Manifest:
    """The server's container, whatever starts it."""
    ping = ping_probe(PORT)
    return {
        "name": names.STORE_CONTAINER,
        "image": image(pool, backend),
        "command": command,
        "env": password_variables(pool, backend),
        "ports": parts.container_ports({"redis": PORT}),
        "resources": parts.block_resources(backend),
        "securityContext": container_context(),
        "startupProbe": ping | {"periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": ping | {"periodSeconds": 5, "failureThreshold": 2},
        # A server that is busy for seconds is not dead, and restarting it would lose every block.
        "livenessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": mounts(),
    }
