"""A RayService's ``spec.serveConfigV2``: the one thing of an application that no Pod can carry.

KubeRay compares this text, byte for byte, with the one it submitted last, and Serve starts its replicas anew when it differs. So
a text that needs no change is returned as it is; one that does is parsed, changed and written once. The tree of nodes is
changed, not values (``nodes``); only comments are lost. The same text always gives the same result, and the result itself needs
no change. What happens to a connector that is there already is decided where it is decided for Pods (``connectors``).

Pods get everything else; so a change of the pool never reaches the RayService, and no second RayCluster comes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kvpool_operator.api import ConflictPolicy
from kvpool_operator.desired.connectors.kvpool import KV_TRANSFER
from kvpool_operator.injection import connectors, names, nodes
from kvpool_operator.injection.outcome import Deny, Outcome, Skip, Why

_TRANSFER, _HASH, _ARGUMENTS = "kv_transfer_config", "prefix_caching_hash_algo", "engine_kwargs"
_OFFLOADING, _CACHING = "kv_offloading_size", "enable_prefix_caching"
_PAIR = ("prefill_config", "decode_config")
_WIDTH = 1 << 20
"""Of a line: nothing is folded, whatever its length."""
MOST_TEXT, MOST_NODES = 256 << 10, 50_000
"""Of a text that is read, in characters and in values: a real one has a few hundred lines."""
_OURS = {**KV_TRANSFER, "kv_connector_extra_config": {"on_failure": "continue"}}
"""Without a configuration in its Pod the engine runs without the cache, instead of not at all."""


def inject(service: Mapping[str, Any], policy: ConflictPolicy, before: Mapping[str, Any] | None = None) -> Outcome:
    """The RayService with the connector in its applications, or with the reason why not.

    Args:
        before: the RayService that an update changes. Whoever touches neither the text nor the annotation (KubeRay itself,
            for one) is not refused for them.
    """
    try:
        text, notes = with_connector(_text(service), policy)
    except Skip as reason:
        return skipped(service, reason)
    except Deny as refusal:
        if before is not None and _asks(before) == _asks(service):
            return skipped(service, Skip(Why.CONNECTOR, str(refusal)))
        return Outcome(dict(service), denied=str(refusal))
    body = _without_reason(service)
    if text != service["spec"]["serveConfigV2"]:
        body = {**body, "spec": {**service["spec"], "serveConfigV2": text}}
    return Outcome(body, warnings=tuple(f"kvpool: {note}" for note in notes))


def _text(service: Mapping[str, Any]) -> str:
    return str(service.get("spec", {}).get("serveConfigV2") or "")


def _asks(service: Mapping[str, Any]) -> tuple[str, str | None]:
    return _text(service), names.annotations_of(service).get(names.POOL)


def skipped(service: Mapping[str, Any], reason: Skip) -> Outcome:
    """The RayService with nothing but the reason on it."""
    annotations = {**names.annotations_of(service), names.SKIP_REASON: str(reason)}
    body = {**service, "metadata": {**service["metadata"], "annotations": annotations}}
    return Outcome(body, warnings=(f"kvpool: {reason}",))


def _without_reason(service: Mapping[str, Any]) -> dict[str, Any]:
    if names.SKIP_REASON not in names.annotations_of(service):
        return dict(service)
    annotations = {key: value for key, value in names.annotations_of(service).items() if key != names.SKIP_REASON}
    return {**service, "metadata": {**service["metadata"], "annotations": annotations}}


def with_connector(text: str, policy: ConflictPolicy) -> tuple[str, list[str]]:
    """The text with the connector in each engine where it can be, and a note on each engine that was left alone.

    Raises:
        Skip: there is nothing that could be changed.
        Deny: an engine has a connector already, and the policy is Fail.
    """
    try:
        return _extended(text, policy)
    except (yaml.YAMLError, RecursionError) as error:
        raise Skip(Why.NOT_YAML, f"spec.serveConfigV2 is not one YAML document ({_where(error)}): correct it") from None


def _extended(text: str, policy: ConflictPolicy) -> tuple[str, list[str]]:
    if len(text) > MOST_TEXT:
        raise Skip(Why.NOT_YAML, f"spec.serveConfigV2 has {len(text)} characters, and at most {MOST_TEXT} are read")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and nodes.expanded(root, MOST_NODES) > MOST_NODES:
        raise Skip(Why.NOT_YAML, f"spec.serveConfigV2 has more than {MOST_NODES} values, each alias (*) written out")
    engines = list(_engines(root))
    if not engines:
        raise Skip(
            Why.NO_LLM,
            "spec.serveConfigV2 has no applications[].args.llm_configs (or prefill_config and decode_config) with a mapping: the "
            "Pods get kvpool's configuration, and the application has to hand kv_transfer_config to vLLM itself",
        )
    changed, left = False, list[tuple[str, Skip]]()
    for path, engine in engines:
        try:
            changed |= _extend(engine, policy)
        except Skip as reason:
            left.append((path, reason))
        except Deny as refusal:
            raise Deny(f"{path}: {refusal}") from None
    notes = [f"{path}: {reason.message}" for path, reason in left]
    if len(left) == len(engines):
        raise Skip(left[0][1].why, "; ".join(notes))
    return (_written(root) if changed else text), notes


def _written(root: yaml.Node | None) -> str:
    return str(yaml.serialize(root, Dumper=yaml.SafeDumper, width=_WIDTH, allow_unicode=True))


def _where(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, " if mark is not None else ""
    return place + (getattr(error, "problem", None) or "nested too deeply")


def _engines(root: yaml.Node | None) -> Iterator[tuple[str, yaml.MappingNode]]:
    """Every place that configures an engine, with its path."""
    for place, application in enumerate(nodes.items(nodes.get(root, "applications"))):
        arguments = nodes.get(application, "args")
        path = f"applications[{place}].args"
        for number, engine in enumerate(nodes.items(nodes.get(arguments, "llm_configs"))):
            if isinstance(engine, yaml.MappingNode):
                yield f"{path}.llm_configs[{number}]", engine
        for key in _PAIR:
            half = nodes.get(arguments, key)
            if isinstance(half, yaml.MappingNode):
                yield f"{path}.{key}", half


def _extend(engine: yaml.MappingNode, policy: ConflictPolicy) -> bool:
    """Add what is missing; returns whether something was.

    Raises:
        Skip, Deny: the engine is left as it is.
    """
    arguments = nodes.get(engine, _ARGUMENTS)
    if arguments is None or nodes.is_null(arguments):
        arguments = nodes.node({})
        nodes.put(engine, _ARGUMENTS, arguments)
    if not isinstance(arguments, yaml.MappingNode):
        raise Skip(Why.UNREADABLE, f"{_ARGUMENTS} is not a mapping: make it one")
    wanted = connectors.combined(_existing(arguments), policy, _OURS)
    if wanted is None:
        return False
    _refuse(arguments, policy)
    nodes.put(arguments, _TRANSFER, nodes.node(wanted))
    if nodes.get(arguments, _HASH) is None:
        nodes.put(arguments, _HASH, nodes.node(connectors.HASH_ALGORITHM))
    return True


def _existing(arguments: yaml.MappingNode) -> Mapping[str, Any] | None:
    found = nodes.get(arguments, _TRANSFER)
    if found is None or nodes.is_null(found):
        return None
    content = nodes.value(found)
    if not isinstance(content, Mapping):
        raise Skip(Why.UNREADABLE, f"{_TRANSFER} is not a mapping with words as keys: make it one")
    return content


def _refuse(arguments: yaml.MappingNode, policy: ConflictPolicy) -> None:
    """What is refused on a command line, too (``pod``)."""
    algorithm = nodes.get(arguments, _HASH)
    if algorithm is not None and getattr(algorithm, "value", None) != connectors.HASH_ALGORITHM:
        raise Skip(
            Why.HASH, f"its {_HASH} must be {connectors.HASH_ALGORITHM} for keys to agree: remove it, or set it so"
        )
    if nodes.is_false(nodes.get(arguments, _CACHING)):
        raise Skip(
            Why.CACHING_OFF,
            f"its {_CACHING} is off, so nothing could be found in a cache: remove it, or set it to true",
        )
    if nodes.get(arguments, _OFFLOADING) is not None:
        connectors.refuse_text(f"its own offloading ({_OFFLOADING})", policy)
