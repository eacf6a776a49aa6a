"""A RayService's ``spec.serveConfigV2``: the one thing of an application that no Pod can carry.

KubeRay compares this text, byte for byte, with the one it submitted last, and Serve starts its replicas anew when it differs. So
a text that needs no change is returned as it is; one that does is parsed, changed and written once. The tree of nodes is
changed, not values, so that ``0755``, ``yes`` or ``1:30`` stay what they were; only comments are lost. The same text always
gives the same result, and the result itself needs no change.

Pods get everything else; so a change of the pool never reaches the RayService, and no second RayCluster comes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kvpool_operator.desired.connectors.kvpool import KV_TRANSFER
from kvpool_operator.injection import connectors, names
from kvpool_operator.injection.outcome import Outcome, Skip, Why

_TRANSFER, _HASH, _ARGUMENTS = "kv_transfer_config", "prefix_caching_hash_algo", "engine_kwargs"
_OFFLOADING = "kv_offloading_size"
_MERGE = "<<"
_PAIR = ("prefill_config", "decode_config")
_WIDTH = 1 << 20
"""Of a line: nothing is folded, whatever its length."""


def inject(service: Mapping[str, Any]) -> Outcome:
    """The RayService with the connector in its applications, or with the reason why not."""
    try:
        text, notes = with_connector(str(service.get("spec", {}).get("serveConfigV2") or ""))
    except Skip as reason:
        return skipped(service, reason)
    body = _without_reason(service)
    if text != service["spec"]["serveConfigV2"]:
        body = {**body, "spec": {**service["spec"], "serveConfigV2": text}}
    return Outcome(body, warnings=tuple(f"kvpool: {note}" for note in notes))


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


def with_connector(text: str) -> tuple[str, list[str]]:
    """The text with the connector in each engine that has none, and a note on each engine that was left alone.

    Raises:
        Skip: there is nothing that could be changed.
    """
    try:
        return _extended(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise Skip(Why.NOT_YAML, f"spec.serveConfigV2 is not one YAML document ({_where(error)}): correct it") from None


def _extended(text: str) -> tuple[str, list[str]]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    engines = list(_engines(root))
    if not engines:
        raise Skip(
            Why.NO_LLM,
            "spec.serveConfigV2 has no applications[].args.llm_configs (or prefill_config and decode_config) with a mapping: the "
            "Pods get kvpool's configuration, and the application has to hand kv_transfer_config to vLLM itself",
        )
    changed, notes = False, []
    for path, engine in engines:
        done, note = _extend(engine)
        changed |= done
        if note:
            notes.append(f"{path}: {note}")
    if not changed and len(notes) == len(engines):
        raise Skip(Why.CONNECTOR, "; ".join(notes))
    return (_written(root) if changed else text), notes


def _written(root: yaml.Node | None) -> str:
    return str(yaml.serialize(root, Dumper=yaml.SafeDumper, width=_WIDTH, allow_unicode=True))


def _where(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, " if mark is not None else ""
    return place + (getattr(error, "problem", None) or "nested too deeply")


def _engines(root: yaml.Node | None) -> Iterator[tuple[str, yaml.MappingNode]]:
    """Every place that configures an engine, with its path."""
    for place, application in enumerate(_items(_get(root, "applications"))):
        arguments = _get(application, "args")
        path = f"applications[{place}].args"
        for number, engine in enumerate(_items(_get(arguments, "llm_configs"))):
            if isinstance(engine, yaml.MappingNode):
                yield f"{path}.llm_configs[{number}]", engine
        for key in _PAIR:
            half = _get(arguments, key)
            if isinstance(half, yaml.MappingNode):
                yield f"{path}.{key}", half


def _extend(engine: yaml.MappingNode) -> tuple[bool, str]:
    """Add what is missing; returns whether something was, and why not where it can't be."""
    arguments = _get(engine, _ARGUMENTS)
    if arguments is not None and not isinstance(arguments, yaml.MappingNode):
        if not _is_null(arguments):
            return False, f"{_ARGUMENTS} is not a mapping: left as it is"
        _remove(engine, _ARGUMENTS)
        arguments = None
    existing, algorithm = _get(arguments, _TRANSFER), _get(arguments, _HASH)
    if existing is not None:
        return False, "" if _has_ours(existing) else f"it has a {_TRANSFER} of its own: left as it is"
    if _get(arguments, _OFFLOADING) is not None:
        return False, f"it has {_OFFLOADING}, which is a connector of vLLM's: left as it is"
    if algorithm is not None and getattr(algorithm, "value", None) != connectors.HASH_ALGORITHM:
        return False, f"its {_HASH} must be {connectors.HASH_ALGORITHM} for keys to agree: left as it is"
    if arguments is None:
        arguments = yaml.MappingNode("tag:yaml.org,2002:map", [], flow_style=False)
        engine.value.append((_scalar(_ARGUMENTS), arguments))
    arguments.value.append((_scalar(_TRANSFER), _connector()))
    if algorithm is None:
        arguments.value.append((_scalar(_HASH), _scalar(connectors.HASH_ALGORITHM)))
    return True, ""


def _connector() -> yaml.MappingNode:
    """Ours. Without a configuration in its Pod the engine runs without the cache, instead of not at all."""
    extra = _mapping({"on_failure": "continue"})
    node = _mapping(KV_TRANSFER)
    node.value.append((_scalar("kv_connector_extra_config"), extra))
    return node


def _mapping(values: Mapping[str, str]) -> yaml.MappingNode:
    pairs = [(_scalar(key), _scalar(value)) for key, value in values.items()]
    return yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=False)


def _scalar(value: str) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", value)


def _has_ours(node: yaml.Node) -> bool:
    if getattr(_get(node, "kv_connector"), "value", None) == connectors.OURS:
        return True
    inner = _get(_get(node, "kv_connector_extra_config"), "connectors")
    return any(_has_ours(one) for one in _items(inner) if one is not node)


def _get(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """The value of a key, also where a merge key (``<<``) brings it in."""
    if not isinstance(node, yaml.MappingNode):
        return None
    inherited: yaml.Node | None = None
    for name, value in node.value:
        if name.value == key:
            found: yaml.Node = value
            return found
        if name.value == _MERGE and inherited is None:
            sources = _items(value) if isinstance(value, yaml.SequenceNode) else [value]
            inherited = next(
                (one for source in sources if source is not node and (one := _get(source, key)) is not None), None
            )
    return inherited


def _remove(node: yaml.MappingNode, key: str) -> None:
    node.value[:] = [(name, value) for name, value in node.value if name.value != key]


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
