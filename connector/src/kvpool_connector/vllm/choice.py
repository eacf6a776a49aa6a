"""Decides what becomes of kvpool in an engine that did not ask for it by `--kv-transfer-config`.

Such an engine has kvpool's configuration in its environment. The decision is made on vLLM's parsed
arguments, whether they came from flags, a file, a script or code. These are pure functions of
values; :mod:`kvpool_connector.vllm.arguments` reads the arguments and carries the decision out.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kvpool_connector.config import ConfigError
from kvpool_connector.names import CONNECTOR, CONNECTOR_MODULE, ENV_CONFLICT_POLICY

MULTI = "MultiConnector"
LMCACHE = "LMCache"
"""How the names of LMCache's connectors begin."""
OURS: Mapping[str, Any] = {
    "kv_connector": CONNECTOR,
    "kv_connector_module_path": CONNECTOR_MODULE,
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
"""kvpool's part of a configuration, in the words of `--kv-transfer-config`."""
HASH_ALGORITHM: Literal["sha256_cbor"] = "sha256_cbor"
"""The algorithm of all engines that share a store: its hashes are the same in every process."""
DEFAULT_HASH_ALGORITHM = "sha256"
"""vLLM 0.32's own choice, which stands for "not chosen" here."""


class _Word(str, enum.Enum):  # noqa: UP042
    """A word of a closed set: Python's `StrEnum`, which 3.10 lacks."""

    __str__ = str.__str__


class Policy(_Word):
    """What to do with an engine that has another KV connector."""

    SKIP = "Skip"
    MULTI = "Multi"
    REPLACE = "Replace"
    FAIL = "Fail"


class State(_Word):
    """What became of kvpool in an engine."""

    ACTIVE = "active"
    SKIPPED = "skipped"
    DISABLED = "disabled"


class Conflict(ConfigError):
    """The policy is `Fail`, and the engine has another KV connector: it must not start."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What vLLM's parsed arguments say before kvpool is added.

    Attributes:
        transfer: the KV connector, in the words of `--kv-transfer-config`; None: there is none.
        hash_algorithm: `--prefix-caching-hash-algo`, or its default.
        offloading: vLLM's own offloading (`--kv-offloading-size`) is on.
    """

    transfer: Mapping[str, Any] | None = None
    hash_algorithm: str = DEFAULT_HASH_ALGORITHM
    offloading: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """What becomes of kvpool, and why.

    Attributes:
        transfer: the KV connector that the engine shall have; None: what it has already.
    """

    state: State
    reason: str
    transfer: Mapping[str, Any] | None = None


def policy(word: str | None) -> Policy:
    """Return the policy that a variable names; `Skip` where it is not set.

    Raises:
        ConfigError: it names none.
    """
    try:
        return Policy(word or Policy.SKIP)
    except ValueError:
        raise ConfigError(f"{ENV_CONFLICT_POLICY}={word!r}: set it to one of {', '.join(Policy)}") from None


def choose(given: Given, conflicts: Policy) -> Choice:
    """Return what becomes of kvpool in an engine with these arguments.

    Raises:
        Conflict: the engine has another KV connector, and the policy is `Fail`.
        ConfigError: the children of its `MultiConnector` cannot be read.
    """
    if given.transfer is not None and has_ours(given.transfer):
        return Choice(State.ACTIVE, "configured by --kv-transfer-config")
    if given.hash_algorithm not in (HASH_ALGORITHM, DEFAULT_HASH_ALGORITHM):
        return Choice(
            State.SKIPPED,
            f"--prefix-caching-hash-algo is {given.hash_algorithm}, and keys would not agree with those of other "
            f"engines: remove it, or set it to {HASH_ALGORITHM}",
        )
    if given.offloading:
        return _beside("vLLM's own offloading is on (--kv-offloading-size)", "remove it", conflicts)
    if given.transfer is None:
        return Choice(State.ACTIVE, "switched on by the environment", OURS)
    return _combined(given.transfer, conflicts)


def has_ours(transfer: Mapping[str, Any]) -> bool:
    """Return whether kvpool is a configured connector, or a child of a `MultiConnector`.

    Raises:
        ConfigError: the children cannot be read.
    """
    return CONNECTOR in (transfer.get("kv_connector"), *(one.get("kv_connector") for one in children(transfer)))


def children(transfer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the connectors inside a `MultiConnector`; of another connector: none.

    Raises:
        ConfigError: they are no list of objects.
    """
    if transfer.get("kv_connector") != MULTI:
        return []
    extra = transfer.get("kv_connector_extra_config")
    inner = extra.get("connectors") if isinstance(extra, Mapping) else None
    if not isinstance(inner, Sequence) or isinstance(inner, str) or not all(isinstance(one, Mapping) for one in inner):
        raise ConfigError(f"kv_connector_extra_config.connectors of the {MULTI} must be a list of objects")
    return list(inner)


def _combined(existing: Mapping[str, Any], conflicts: Policy) -> Choice:
    name = str(existing.get("kv_connector"))
    if conflicts is Policy.MULTI:
        alone = {key: value for key, value in existing.items() if key != "engine_id"}  # vLLM hands it down
        inner = children(existing) or [alone]
        return Choice(State.ACTIVE, f"beside {name}", _multi(existing, inner))
    if conflicts is Policy.REPLACE:
        return _replaced(existing, name)
    return _beside(
        f"the KV connector {name} is configured",
        f"remove it, or set {ENV_CONFLICT_POLICY} to Multi or Replace",
        conflicts,
    )


def _beside(what: str, way_out: str, conflicts: Policy) -> Choice:
    """Leave an engine alone that has a cache of its own, or refuse it.

    Raises:
        Conflict: the policy is `Fail`.
    """
    if conflicts is Policy.FAIL:
        raise Conflict(f"{what}, and {ENV_CONFLICT_POLICY} is {Policy.FAIL}: {way_out}")
    return Choice(State.SKIPPED, f"{what}: {way_out}")


def _replaced(existing: Mapping[str, Any], name: str) -> Choice:
    """Take the place of LMCache's connectors, and of no other: what NIXL and the like do, kvpool
    does not."""
    if name.startswith(LMCACHE):
        role = {"kv_role": existing["kv_role"]} if existing.get("kv_role") else {}
        return Choice(State.ACTIVE, f"in place of {name}", {**OURS, **role})
    inner = children(existing)
    kept = [one for one in inner if not str(one.get("kv_connector")).startswith(LMCACHE)]
    if len(kept) == len(inner):
        return Choice(
            State.SKIPPED,
            f"the KV connector {name} is configured, and {Policy.REPLACE} is for LMCache's connectors: set {ENV_CONFLICT_POLICY} "
            f"to {Policy.MULTI}, or remove it",
        )
    wanted = _multi(existing, kept) if kept else dict(OURS)
    return Choice(State.ACTIVE, f"in place of LMCache inside {MULTI}", wanted)


def _multi(existing: Mapping[str, Any], inner: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put kvpool first: vLLM loads from the first connector that has something, and kvpool asks a
    store where others fetch from a peer."""
    kept = {key: existing[key] for key in ("engine_id",) if existing.get(key)}
    return {
        "kv_connector": MULTI,
        "kv_role": existing.get("kv_role") or "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [dict(OURS), *copy.deepcopy(list(inner))]},
        **kept,
    }
