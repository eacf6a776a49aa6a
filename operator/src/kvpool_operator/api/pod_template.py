"""Which fields of a user's Pod template are taken. Whoever may make pools may not thereby run Pods that the namespace does not
let them run themselves: the operator, which has more rights, makes the Pods.

Pure. Two checks: the shape, without which templates can't be merged, and the allow-list, which the operator's setting
``podTemplates: Full`` switches off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvpool_operator.api.settings import PodTemplates, Settings
from kvpool_operator.api.spec import InvalidSpec, KVCachePoolSpec

_ANY: None = None
"""In place of the fields below one: all of them."""
Fields = Mapping[str, "Fields | None"]

_MERGED_BY = ("name", "mountPath", "devicePath", "containerPort", "ip", "topologyKey")
"""Keys by which entries of lists are merged; see desired.podpatch."""
_VOLUME: Fields = {
    "name": _ANY,
    "emptyDir": _ANY,
    "persistentVolumeClaim": _ANY,
    "ephemeral": _ANY,
    "configMap": _ANY,
    "downwardAPI": _ANY,
}
"""Volumes that hold nothing of the node's and no Secret."""
_CONTAINER: Fields = {"name": _ANY, "resources": _ANY, "volumeMounts": _ANY}
_TEMPLATE: Fields = {
    "metadata": {"labels": _ANY, "annotations": _ANY},
    "spec": {
        "affinity": _ANY,
        "containers": _CONTAINER,
        "imagePullSecrets": _ANY,
        "nodeSelector": _ANY,
        "priorityClassName": _ANY,
        "resourceClaims": _ANY,
        "runtimeClassName": _ANY,
        "schedulerName": _ANY,
        "terminationGracePeriodSeconds": _ANY,
        "tolerations": _ANY,
        "topologySpreadConstraints": _ANY,
        "volumes": _VOLUME,
    },
}
_TAKEN = (
    "scheduling, volumes without Secrets and host paths, labels, annotations, resources, pull secrets and runtime class"
)
_MOST_FAULTS = 5


def check_templates(spec: KVCachePoolSpec, settings: Settings) -> None:
    """Look at all Pod templates of a spec.

    Raises:
        InvalidSpec: a template has a field that is not taken, or can't be merged. The message names each field and the fix.
    """
    faults = [fault for path, name, template in _templates(spec) for fault in _faults(path, name, template, settings)]
    if faults:
        more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise InvalidSpec("; ".join(faults[:_MOST_FAULTS]) + more)


def _templates(spec: KVCachePoolSpec) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield path, name of the main container, and template."""
    for place, engine in enumerate(spec.engines):
        if engine.pod_template:
            yield f"spec.engines[{place}].podTemplate", "engine", engine.pod_template
    server = spec.connector.server
    if server is not None and server.pod_template:
        yield "spec.connector.server.podTemplate", "lmcache", server.pod_template


def _faults(path: str, container: str, template: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    yield from _bad_keys(path, template)
    if settings.pod_templates is PodTemplates.FULL:
        return
    for field in _not_taken(path, template, _TEMPLATE):
        yield (
            f"{field} is not taken from a pool, which may set {_TAKEN}: remove it, or have the operator's setting podTemplates "
            "set to Full, with which whoever makes pools may run any Pod in their namespaces"
        )
    containers = (template.get("spec") or {}).get("containers") if isinstance(template.get("spec"), Mapping) else None
    for place, entry in enumerate(containers if isinstance(containers, list) else ()):
        if isinstance(entry, Mapping) and entry.get("name") != container:
            yield f"{path}.spec.containers[{place}].name: the container is called {container!r}, and a pool may not add others"


def _not_taken(path: str, value: Any, fields: Fields | None) -> Iterator[str]:
    """Yield the paths of fields that are not in the allow-list."""
    if fields is _ANY or value is None:
        return
    if isinstance(value, list):
        for place, entry in enumerate(value):
            yield from _not_taken(f"{path}[{place}]", entry, fields)
    elif isinstance(value, Mapping):
        for key, below in value.items():
            if key in fields:
                yield from _not_taken(f"{path}.{key}", below, fields[key])
            else:
                yield f"{path}.{key[:60]}"
    else:
        yield path


def _bad_keys(path: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with keys by which lists are merged."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _bad_keys(f"{path}.{key[:60]}", below)
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            yield from _bad_keys(f"{path}[{place}]", entry)
            for key in _MERGED_BY if isinstance(entry, Mapping) else ():
                if key in entry and not isinstance(entry[key], str | int):
                    yield f"{path}[{place}].{key}: must be a text or a number"
