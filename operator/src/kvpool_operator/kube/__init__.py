"""The only way to the API server: paths, dicts, and errors a caller can tell apart. Used by ``observe`` and ``apply``."""

from kvpool_operator.kube.client import ApiError, Client, Conflict, NotFound, Refused, connect
from kvpool_operator.kube.resources import (
    CHILD_KINDS,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    POOL,
    RAY_CLUSTER,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    WEBHOOKS,
    Resource,
    resource_of,
)

__all__ = [
    "CHILD_KINDS",
    "CONFIG_MAP",
    "DEPLOYMENT",
    "EVENT",
    "NETWORK_POLICY",
    "POD",
    "POD_DISRUPTION_BUDGET",
    "POOL",
    "RAY_CLUSTER",
    "SECRET",
    "SERVICE",
    "STATEFUL_SET",
    "WEBHOOKS",
    "ApiError",
    "Client",
    "Conflict",
    "NotFound",
    "Refused",
    "Resource",
    "connect",
    "resource_of",
]
