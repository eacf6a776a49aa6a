"""Merging a user's Pod template into ours, the way ``kubectl patch`` (strategic merge) does.

Mappings merge, lists of named things merge by their key, other lists are replaced, null removes. That covers Pod specs
without carrying Kubernetes' schema along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "claims": "name",
}


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A new mapping: ``base`` with ``patch`` on top. Neither argument is changed."""
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        elif key in _MERGE_KEYS and isinstance(value, list | tuple) and isinstance(merged.get(key), list | tuple):
            merged[key] = merge_list(merged[key], value, _MERGE_KEYS[key])
        else:
            merged[key] = value
    return merged


def merge_list(base: Sequence[Any], patch: Sequence[Any], key: str) -> list[Any]:
    """Entries with the same key merge in place, new ones come last. An entry without the key is appended as it is."""
    merged = list(base)
    places = {entry[key]: place for place, entry in enumerate(merged) if isinstance(entry, Mapping) and key in entry}
    for entry in patch:
        place = places.get(entry.get(key)) if isinstance(entry, Mapping) else None
        if place is None:
            merged.append(entry)
            if isinstance(entry, Mapping) and key in entry:
                places[entry[key]] = len(merged) - 1
        elif "value" in entry or "valueFrom" in entry:
            # An environment variable has one source: a new one replaces the old one instead of joining it.
            merged[place] = dict(entry)
        else:
            merged[place] = merge(merged[place], entry)
    return merged


def merge_templates(
    template: Mapping[str, Any], *patches: Mapping[str, Any] | None, selector: Mapping[str, str]
) -> dict[str, Any]:
    """A Pod template with patches on top, and the labels that its Deployment selects by put back whatever they say."""
    merged = dict(template)
    for patch in patches:
        merged = merge(merged, patch or {})
    return merge(merged, {"metadata": {"labels": selector}})
