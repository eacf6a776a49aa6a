"""What a workload that waits keeps: its Pod template, its claims, and what its Pods mount. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvpool_operator.desired import Manifest
from kvpool_operator.observe.cache import Key, key_of

_NAMES = {
    "configMap": ("ConfigMap", "name"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "secret": ("Secret", "secretName"),
    "secretKeyRef": ("Secret", "name"),
    "secretRef": ("Secret", "name"),
}
"""Where a Pod names a ConfigMap or a Secret: kind, and the field with the name."""
_RETENTION = "persistentVolumeClaimRetentionPolicy"
_CLAIM_FIELDS = ("volumeClaimTemplates", _RETENTION)


def with_kept_pods(wanted: Manifest, live: Mapping[str, Any]) -> Manifest:
    """Return the manifest with the Pod template and the claims that the workload has."""
    template = live["spec"]["template"]
    # An older API server writes a null here, which would be a field to own.
    head = template.get("metadata", {})
    metadata = {key: value for key, value in head.items() if value is not None}
    spec = {key: value for key, value in wanted["spec"].items() if key not in _CLAIM_FIELDS}
    claims = {key: live["spec"][key] for key in _CLAIM_FIELDS if key in live["spec"]}
    return {**wanted, "spec": {**spec, "template": {**template, "metadata": metadata}, **claims}}


def with_loose_claims(manifest: Manifest) -> Manifest:
    """Return a StatefulSet's manifest that does not take its claims along when it is deleted."""
    spec = manifest["spec"]
    retention = {**spec.get(_RETENTION, {}), "whenDeleted": "Retain"}
    return {**manifest, "spec": {**spec, _RETENTION: retention}}


def with_kept_files(
    manifests: Sequence[Manifest],
    live: Mapping[Key, Mapping[str, Any]],
    held: Sequence[Mapping[str, Any]],
) -> list[Manifest]:
    """Return the manifests, with ConfigMaps that a waiting workload mounts as they are.

    A container that starts again would read a file that is newer than the program in it.
    """
    mounted = mounts(held)
    return [
        {**manifest, "data": live[key].get("data", {})}
        if (key := key_of(manifest)) in mounted and key in live and manifest["kind"] == "ConfigMap"
        else manifest
        for manifest in manifests
    ]


def mounts(held: Sequence[Mapping[str, Any]]) -> set[Key]:
    """Return the ConfigMaps and Secrets without which these Pods would not start again."""
    return {
        (kind, str(workload["metadata"]["namespace"]), name)
        for workload in held
        for kind, name in _named(workload["spec"]["template"])
    }


def _named(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in _NAMES and isinstance(value, Mapping):
                kind, field = _NAMES[key]
                # A projected volume calls a Secret's name like any other name.
                name = value.get(field) or value.get("name")
                if isinstance(name, str):
                    yield kind, name
            yield from _named(value)
    elif isinstance(node, list):
        for child in node:
            yield from _named(child)
