"""Which connector runs inside vLLM, and how engines with different roles hand prompts to each other.

What a type cannot do is data here: the status, the rules and ``docs/connectors.md`` say the same.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import Field

from kvpool_operator.api.types import FREE_FORM, ApiModel, Rule


class ConnectorType(enum.StrEnum):
    """Whose connector vLLM loads."""

    KVPOOL = "KVPool"
    LMCACHE = "LMCache"
    LMCACHE_MP = "LMCacheMP"
    NATIVE = "Native"


class Transport(enum.StrEnum):
    """How a decode engine gets what a prefill engine computed."""

    POOL = "Pool"
    NIXL = "NIXL"


class Role(enum.StrEnum):
    """Which part of a request an engine serves."""

    BOTH = "Both"
    PREFILL = "Prefill"
    DECODE = "Decode"


LIMITS: Mapping[ConnectorType, str] = {
    ConnectorType.KVPOOL: "",
    ConnectorType.LMCACHE: "LMCache inside the engine needs GPUs, checks no part when it is read, cannot serve hybrid models, "
    "and waits up to its own time-outs for a store; the engine's image must have the package lmcache",
    ConnectorType.LMCACHE_MP: "LMCache's server checks no part when it is read, keeps no part over its restart unless there is a "
    "store, and engines must be restarted after it; the engine's image must have the package lmcache",
    ConnectorType.NATIVE: "vLLM's own offloading needs GPUs and has no shared store: each engine keeps its own memory tier",
}
"""What a pool of this type has to live without, for its status."""

_KVPOOL_ONLY = {
    "timeouts": "timeouts",
    "ttl_seconds": "ttlSeconds",
    "chunk_tokens": "chunkTokens",
    "admission": "admission",
    "verify_one_in": "verifyOneIn",
    "on_failure": "onFailure",
    "offload_generated_tokens": "offloadGeneratedTokens",
}


class ConnectorServer(ApiModel):
    """LMCache's server on each node."""

    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Image with the package lmcache; absent: the operator's default.",
    )
    pod_template: dict[str, Any] | None = Field(
        None,
        description="Merged into the server's Pod template, as in engines: a nodeSelector keeps it to nodes with engines.",
        json_schema_extra=FREE_FORM,
    )


def _only_for_kvpool(python_name: str, name: str) -> Rule:
    return Rule(
        cel=f"!has(self.{name}) || !has(self.type) || self.type == 'KVPool'",
        message=f"spec.connector.{name} is a setting of kvpool's own connector: remove it, or set spec.connector.type to KVPool",
        holds=lambda self: getattr(self, python_name) is None or self.type is ConnectorType.KVPOOL,
        field_path=f".{name}",
    )


class ConnectorChoice(ApiModel):
    """The fields of ``spec.connector`` that say which connector it is."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *(_only_for_kvpool(python_name, name) for python_name, name in _KVPOOL_ONLY.items()),
        Rule(
            cel="!has(self.server) || (has(self.type) && self.type == 'LMCacheMP')",
            message="spec.connector.server is LMCache's server on each node: set spec.connector.type to LMCacheMP, or remove it",
            holds=lambda self: self.server is None or self.type is ConnectorType.LMCACHE_MP,
            field_path=".server",
        ),
        Rule(
            cel="!has(self.transport) || self.transport == 'Pool' || !has(self.type) || self.type == 'KVPool'",
            message="spec.connector.transport NIXL is composed with kvpool's own connector only: set spec.connector.type to "
            "KVPool, or remove transport",
            holds=lambda self: self.transport is not Transport.NIXL or self.type is ConnectorType.KVPOOL,
            field_path=".transport",
        ),
    )

    type: ConnectorType = Field(
        ConnectorType.KVPOOL, description="Whose connector vLLM loads; docs/connectors.md compares them."
    )
    transport: Transport | None = Field(
        None,
        description="How a decode engine gets the prompt: through the store (Pool, default), or from the prefill engine (NIXL).",
    )
    server: ConnectorServer | None = Field(None, description="LMCacheMP: the server on each node.")


def _rule(cel: str, message: str, holds: Callable[[Any], bool], field_path: str) -> Rule:
    return Rule(cel=cel, message=message, holds=holds, field_path=field_path)


def _has_type(*types: ConnectorType) -> str:
    wanted = " || ".join(f"self.connector.type == '{kind}'" for kind in types)
    return f"(has(self.connector) && has(self.connector.type) && ({wanted}))"


_OTHERS = (ConnectorType.LMCACHE, ConnectorType.LMCACHE_MP, ConnectorType.NATIVE)
_HAS_STORE = "(has(self.backend) && self.backend.type != 'None')"
_ENGINES = "(has(self.engines) ? self.engines : [])"
_ROLES = "(has(self.engines) && self.engines.exists(e, has(e.role) && e.role != 'Both'))"
_NIXL = "(has(self.connector) && has(self.connector.transport) && self.connector.transport == 'NIXL')"


def _roles(spec: Any) -> set[Role]:
    return {engine.role for engine in spec.engines}


def _needs_gpus(kind: ConnectorType, why: str) -> Rule:
    return _rule(
        f"!{_has_type(kind)} || !has(self.engines) || self.engines.all(e, has(e.gpus) && e.gpus > 0)",
        f"spec.engines[].gpus is 0, and spec.connector.type {kind} {why}: set gpus, or set spec.connector.type to KVPool",
        lambda self: self.connector.type is not kind or all(engine.gpus for engine in self.engines),
        ".engines",
    )


RULES: tuple[Rule, ...] = (
    _needs_gpus(ConnectorType.NATIVE, "copies between a GPU and host memory, which vLLM's CPU build has not"),
    _needs_gpus(ConnectorType.LMCACHE, "allocates GPU buffers in the engine"),
    _rule(
        f"!{_has_type(ConnectorType.NATIVE)} || !{_HAS_STORE}",
        "spec.connector.type Native has no shared store: remove spec.backend, or set spec.connector.type to KVPool",
        lambda self: self.connector.type is not ConnectorType.NATIVE or not self.has_store,
        ".backend",
    ),
    _rule(
        f"!{_has_type(ConnectorType.NATIVE, ConnectorType.LMCACHE_MP)} || (has(self.tiers) && has(self.tiers.cpu))",
        "spec.tiers.cpu is missing: spec.connector.type Native and LMCacheMP keep blocks in host memory; set spec.tiers.cpu.size",
        lambda self: (
            self.connector.type not in (ConnectorType.NATIVE, ConnectorType.LMCACHE_MP) or self.tiers.cpu is not None
        ),
        ".tiers",
    ),
    _rule(
        f"!{_has_type(ConnectorType.LMCACHE_MP)} || !{_HAS_STORE} || self.backend.type in ['Redis', 'Valkey']",
        "spec.connector.type LMCacheMP works with spec.backend.type Redis, Valkey or None: change one of the two",
        lambda self: (
            self.connector.type is not ConnectorType.LMCACHE_MP
            or not self.has_store
            or self.backend.type in ("Redis", "Valkey")
        ),
        ".backend",
    ),
    _rule(
        f"!{_has_type(*_OTHERS)} || !has(self.tiers) || !has(self.tiers.disk)",
        "spec.tiers.disk is kept by kvpool's own connector: remove it, or set spec.connector.type to KVPool",
        lambda self: self.connector.type is ConnectorType.KVPOOL or self.tiers.disk is None,
        ".tiers",
    ),
    _rule(
        f"!{_has_type(*_OTHERS)} || !has(self.tiers) || !has(self.tiers.cpu) || !has(self.tiers.cpu.evictionPolicy)",
        "spec.tiers.cpu.evictionPolicy is a setting of kvpool's own connector: remove it, or set spec.connector.type to KVPool",
        lambda self: (
            self.connector.type is ConnectorType.KVPOOL
            or self.tiers.cpu is None
            or self.tiers.cpu.eviction_policy is None
        ),
        ".tiers",
    ),
    _rule(
        f"!{_ROLES} || !{_has_type(*_OTHERS)}",
        "spec.engines[].role Prefill and Decode need spec.connector.type KVPool: set it, or remove the roles",
        lambda self: _roles(self) <= {Role.BOTH} or self.connector.type is ConnectorType.KVPOOL,
        ".engines",
    ),
    _rule(
        f"!{_ROLES} || ({_ENGINES}.exists(e, e.role == 'Prefill') && {_ENGINES}.exists(e, e.role == 'Decode'))",
        "spec.engines[].role Prefill and Decode need each other: add an engine with the other role, or remove the role",
        lambda self: _roles(self) <= {Role.BOTH} or {Role.PREFILL, Role.DECODE} <= _roles(self),
        ".engines",
    ),
    _rule(
        f"!{_ROLES} || {_NIXL} || {_HAS_STORE}",
        "spec.engines[].role Prefill and Decode meet in the store, and spec.backend has none: set spec.backend.type, or set "
        "spec.connector.transport to NIXL",
        lambda self: _roles(self) <= {Role.BOTH} or self.connector.transport is Transport.NIXL or self.has_store,
        ".engines",
    ),
)
"""Of the whole spec: combinations of a connector with stores and engines."""
