"""What a user writes and reads: the KVCachePool resource, the operator's settings, and the CRD made from them.

Pure: imports neither kopf nor a Kubernetes client nor a clock. Everything else in the operator may import this package;
this package imports nothing of the operator.
"""

from kvpool_operator.api.backend import Backend, StoreType
from kvpool_operator.api.connector_types import ConnectorType, Role, Transport
from kvpool_operator.api.injection import ConflictPolicy, Delivery, Injection, InjectionMode
from kvpool_operator.api.rollout import RolloutPolicy
from kvpool_operator.api.settings import Settings
from kvpool_operator.api.spec import Engine, InvalidSpec, KVCachePoolSpec, parse_spec
from kvpool_operator.api.types import API_VERSION, GROUP, KIND, PLURAL, VERSION

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "Backend",
    "ConflictPolicy",
    "ConnectorType",
    "Delivery",
    "Engine",
    "Injection",
    "InjectionMode",
    "InvalidSpec",
    "KVCachePoolSpec",
    "Role",
    "RolloutPolicy",
    "Settings",
    "StoreType",
    "Transport",
    "parse_spec",
]
