"""Redis or Valkey that outlives the loss of a server: three servers, of which one is the primary, and three sentinels.

All Pods have names of their own (StatefulSets and headless Services), and every address in the group is such a name: a Pod
that comes back elsewhere is still the same member. Which server begins as primary is decided in ``templates/group.sh``.
"""

from __future__ import annotations

from kvpool_operator.api import Backend
from kvpool_operator.api.stores import Sentinel
from kvpool_operator.desired import names
from kvpool_operator.desired.files import digest, render
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import container_context, pod_basics
from kvpool_operator.desired.stores import parts, redis

PORT = 26379
COMPONENT = "sentinel"
MASTER_NAME = "kvpool"
SERVERS = 3
SENTINELS = 3
QUORUM = 2
ACL_KEY = "sentinels.acl"
_GROUP_VARIABLE = "KVPOOL_GROUP_PASSWORD"
_FILL_S = 300
"""How long a server may take to be filled by the primary and to become known to the sentinels."""
_STARTUP_PERIOD_S = 2


def acl(password: str, group_password: str, former: str = "") -> str:
    """The sentinels' users: engines may ask, the group may do anything, ``default`` is shut.

    Args:
        former: as for the servers' users.
    """
    asking = "+@connection -@admin -@dangerous +ping +role +info +subscribe +psubscribe"
    for question in ("get-master-addr-by-name", "master", "masters", "replicas", "sentinels", "ckquorum"):
        asking += f" +sentinel|{question}"
    return (
        "user default off\n"
        f"user {redis.USERNAME} on {redis.passwords(password, former)} &* {asking}\n"
        f"user {redis.GROUP_USERNAME} on #{redis.password_digest(group_password)} ~* &* +@all\n"
    )


def build_group_secret(pool: Pool) -> Manifest | None:
    """The group's own password, which engines never see, and the sentinels' users."""
    if not pool.spec.uses_sentinels:
        return None
    material = pool.material
    content = {
        redis.PASSWORD_KEY: material.group_password,
        ACL_KEY: acl(material.store_password, material.group_password, material.former_digest),
    }
    return redis.secret(pool, names.group_auth(pool), content)


def server_hosts(pool: Pool) -> list[str]:
    return [names.member_host(pool, names.store(pool), number, names.members(pool)) for number in range(SERVERS)]


def sentinel_hosts(pool: Pool) -> list[str]:
    service = names.sentinel(pool)
    return [names.member_host(pool, service, number, service) for number in range(SENTINELS)]


def _patience_s(settings: Sentinel) -> int:
    """Return for how many seconds a server that lost its memory waits until another one is primary.

    That is until a second attempt has ended. The first one may find no majority, and the next begins
    twice the time-out later. Source: redis/src/sentinel.c, sentinelStartFailoverIfNeeded.
    """
    return 2 * (settings.down_after_seconds + settings.failover_timeout_seconds) + 10


def _startup_probe(settings: Sentinel) -> Manifest:
    """Return the probe by which a server has begun once most sentinels know it.

    A server that they never come to know is started anew after its patience and `_FILL_S`.
    """
    longest_s = _patience_s(settings) + _FILL_S
    return {
        "exec": {"command": ["sh", f"{redis.CONFIG_DIRECTORY}/known.sh"]},
        "periodSeconds": _STARTUP_PERIOD_S,
        # Seven questions, two seconds each.
        "timeoutSeconds": 15,
        "failureThreshold": longest_s // _STARTUP_PERIOD_S,
    }


def files(pool: Pool, backend: Backend) -> dict[str, str]:
    """Configuration and scripts of servers and sentinels. No secrets: these come by the environment."""
    settings = backend.sentinel or Sentinel()
    common: dict[str, object] = {
        **redis.script_values(backend),
        "servers": server_hosts(pool),
        "sentinels": sentinel_hosts(pool),
        "sentinel_port": PORT,
        "sentinels_file": ACL_KEY,
        "group_user": redis.GROUP_USERNAME,
        "master_name": MASTER_NAME,
        "quorum": QUORUM,
        "down_after_ms": settings.down_after_seconds * 1000,
        "failover_timeout_ms": settings.failover_timeout_seconds * 1000,
        "patience_seconds": _patience_s(settings),
    }
    members = names.service_host(pool, names.members(pool))
    sentinels = names.service_host(pool, names.sentinel(pool))
    return {
        "redis.conf": redis.config_file(backend, in_group=True),
        "group.sh": render("group.sh.j2", **common),
        "users.sh": render("users.sh.j2", **common),
        "ping.sh": render("ping.sh.j2", **common),
        "start-server.sh": render("start-server.sh.j2", **common, domain=members),
        "known.sh": render("known.sh.j2", **common, domain=members),
        "leave.sh": render("leave.sh.j2", **common, domain=members),
        "start-sentinel.sh": render("start-sentinel.sh.j2", **common, domain=sentinels),
    }


def build(pool: Pool) -> list[Manifest]:
    """The whole group; nothing for a pool without sentinels of kvpool's."""
    backend = pool.spec.managed_redis
    if backend is None or not pool.spec.uses_sentinels:
        return []
    secrets = (build_group_secret(pool), redis.build_auth_secret(pool), redis.build_users_secret(pool))
    return [
        *(secret for secret in secrets if secret is not None),
        parts.config_map(pool, names.store(pool), redis.COMPONENT, files(pool, backend)),
        parts.service(pool, names.members(pool), redis.COMPONENT, {"redis": redis.PORT}, headless=True),
        parts.service(pool, names.sentinel(pool), COMPONENT, {"sentinel": PORT}, headless=True),
        redis.network_policy(pool),
        parts.network_policy(pool, names.sentinel(pool), COMPONENT, clients=[parts.tcp(PORT)]),
        parts.budget(pool, names.store(pool), redis.COMPONENT),
        parts.budget(pool, names.sentinel(pool), COMPONENT),
        _servers(pool, backend),
        _sentinels(pool, backend),
    ]


def _rolled_by(pool: Pool, backend: Backend) -> str:
    return digest({"config": files(pool, backend), "group": pool.material.group_secret_uid})


def _environment(pool: Pool) -> list[Manifest]:
    password = {"secretKeyRef": {"name": names.group_auth(pool), "key": redis.PASSWORD_KEY}}
    return [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": _GROUP_VARIABLE, "valueFrom": password},
    ]


def _servers(pool: Pool, backend: Backend) -> Manifest:
    container = redis.container(pool, backend, ["sh", f"{redis.CONFIG_DIRECTORY}/start-server.sh"])
    container["env"] = [*container["env"], *_environment(pool)]
    container["lifecycle"] = {"preStop": {"exec": {"command": ["sh", f"{redis.CONFIG_DIRECTORY}/leave.sh"]}}}
    container["startupProbe"] = _startup_probe(backend.sentinel or Sentinel())
    spec = pod_basics() | {
        "terminationGracePeriodSeconds": 45,
        "affinity": parts.affinity(pool, redis.COMPONENT),
        "containers": [container],
        "volumes": redis.volumes(pool),
    }
    template = parts.template(pool, redis.COMPONENT, _rolled_by(pool, backend), spec)
    return parts.stateful_set(
        pool, names.store(pool), redis.COMPONENT, template, replicas=SERVERS, service_name=names.members(pool)
    )


def _sentinels(pool: Pool, backend: Backend) -> Manifest:
    ping = redis.ping_probe(PORT)
    container: Manifest = {
        "name": names.STORE_CONTAINER,
        "image": redis.image(pool, backend),
        "command": ["sh", f"{redis.CONFIG_DIRECTORY}/start-sentinel.sh"],
        "env": [*redis.password_variables(pool, backend), *_environment(pool)],
        "ports": parts.container_ports({"sentinel": PORT}),
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": container_context(),
        # It waits for the first server.
        "startupProbe": ping | {"periodSeconds": 2, "failureThreshold": 300},
        "readinessProbe": ping | {"periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {"tcpSocket": {"port": "sentinel"}, "periodSeconds": 10, "failureThreshold": 6},
        "volumeMounts": redis.mounts(),
    }
    users = {
        "secretName": names.group_auth(pool),
        "defaultMode": 0o440,
        "items": [{"key": ACL_KEY, "path": ACL_KEY}],
    }
    spec = pod_basics() | {
        "terminationGracePeriodSeconds": 5,
        "affinity": parts.affinity(pool, COMPONENT),
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": names.store(pool)}},
            {"name": "auth", "secret": users},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    template = parts.template(pool, COMPONENT, _rolled_by(pool, backend), spec)
    return parts.stateful_set(
        pool, names.sentinel(pool), COMPONENT, template, replicas=SENTINELS, service_name=names.sentinel(pool)
    )
