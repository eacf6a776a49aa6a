"""KV connectors in a vLLM's configuration: ours, others, and what a pool's conflict policy makes of both."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvpool_operator.api import ConflictPolicy
from kvpool_operator.desired.connectors.kvpool import KV_TRANSFER
from kvpool_operator.injection.outcome import Deny, Skip, Why

OURS = KV_TRANSFER["kv_connector"]
HASH_ALGORITHM = "sha256_cbor"
"""The algorithm of pools: reproducible between processes, and the one whose blocks all engines of a pool find."""
MULTI = "MultiConnector"
_LMCACHE = "LMCache"
_POLICY = "spec.injection.conflictPolicy"


def to_json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, separators=(",", ":"), ensure_ascii=False)


def dotted() -> list[str]:
    """Ours as flags without a quote or a brace, for command lines that a shell reads twice."""
    return [word for key, value in KV_TRANSFER.items() for word in (f"--kv-transfer-config.{key}", value)]


def children(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The connectors inside a MultiConnector; of another connector: none."""
    if config.get("kv_connector") != MULTI:
        return []
    extra = config.get("kv_connector_extra_config")
    inner = extra.get("connectors") if isinstance(extra, Mapping) else None
    if not isinstance(inner, Sequence) or isinstance(inner, str) or not all(isinstance(one, dict) for one in inner):
        raise Skip(
            Why.UNREADABLE, "kv_connector_extra_config.connectors of the MultiConnector must be a list of objects"
        )
    return list(inner)


def is_ours(config: Mapping[str, Any]) -> bool:
    return config.get("kv_connector") == OURS or any(one.get("kv_connector") == OURS for one in children(config))


def combined(
    existing: Mapping[str, Any] | None, policy: ConflictPolicy, ours: Mapping[str, Any] = KV_TRANSFER
) -> dict[str, Any] | None:
    """The configuration that vLLM shall get; None: the existing one, which has ours already.

    Args:
        existing: what is not looked at is handed on as it is, whatever it is.
        ours: our connector's part.

    Raises:
        Skip: the policy is to leave it alone, or does not fit this connector.
        Deny: the policy is Fail.
    """
    if existing is None:
        return dict(ours)
    if is_ours(existing):
        return None
    name = str(existing.get("kv_connector"))
    if policy is ConflictPolicy.FAIL:
        raise Deny(
            f"vLLM has the KV connector {name} already, and the pool's {_POLICY} is Fail: remove it, or the annotation"
        )
    if policy is ConflictPolicy.MULTI:
        return _multi(existing, ours)
    if policy is ConflictPolicy.REPLACE:
        return _replaced(existing, name, ours)
    raise Skip(
        Why.CONNECTOR,
        f"vLLM has the KV connector {name} already: remove it, or set the pool's {_POLICY} to Multi or Replace",
    )


def refuse_text(name: str, policy: ConflictPolicy) -> None:
    """For a connector that stands where we can't change it.

    Raises:
        Skip, Deny: always.
    """
    if policy is ConflictPolicy.FAIL:
        raise Deny(f"vLLM has {name} already, and the pool's {_POLICY} is Fail: remove it, or the annotation")
    raise Skip(Why.CONNECTOR, f"vLLM has {name} already, where it can't be changed from outside: remove it there")


def _multi(existing: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM loads from the first connector that has something, so ours, which asks a store, comes first."""
    # vLLM 0.32 hands its engine's id down to the children, and starts with none that names one itself.
    alone = {key: value for key, value in existing.items() if key != "engine_id"}
    inner = children(existing) or [alone]
    return {
        "kv_connector": MULTI,
        "kv_role": existing.get("kv_role", "kv_both"),
        "kv_load_failure_policy": "recompute",
        **({"engine_id": existing["engine_id"]} if "engine_id" in existing else {}),
        "kv_connector_extra_config": {"connectors": [dict(ours), *copy.deepcopy(inner)]},
    }


def _replaced(existing: Mapping[str, Any], name: str, ours: Mapping[str, Any]) -> dict[str, Any]:
    if name.startswith(_LMCACHE):
        return {**ours, **({"kv_role": existing["kv_role"]} if "kv_role" in existing else {})}
    inner = children(existing)
    if not any(str(one.get("kv_connector")).startswith(_LMCACHE) for one in inner):
        raise Skip(
            Why.CONNECTOR, f"{_POLICY} Replace is for LMCache's connectors, not for {name}: use Multi, or remove it"
        )
    kept = [one for one in inner if not str(one.get("kv_connector")).startswith(_LMCACHE)]
    return _multi({**existing, "kv_connector_extra_config": {"connectors": kept}}, ours) if kept else dict(ours)
