"""A Pod with the cache in it: environment, mounts, volumes, memory, and the marks that say so.

Nothing is taken away, and no command line is read or changed. ``inject`` never changes its argument
and shares what it leaves alone, so that a Pod of 900 KB costs no more than a small one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_connector.config import ENV_CONFIG_FILE
from kvpool_operator.api import Delivery
from kvpool_operator.desired import connector_config, disk, payload
from kvpool_operator.desired.names import consumer_value
from kvpool_operator.desired.podpatch import merge_list
from kvpool_operator.desired.sizing import quantity
from kvpool_operator.desired.stores import remotes
from kvpool_operator.injection import environment, memory, names, target, warnings
from kvpool_operator.injection.facts import Facts
from kvpool_operator.injection.names import PoolKey
from kvpool_operator.injection.outcome import Outcome, Skip, Why

Json = dict[str, Any]


def inject(pod: Mapping[str, Any], facts: Facts) -> Outcome:
    """Return the Pod with the cache, or with the reason why it has none."""
    try:
        place = target.find(pod)
        said = warnings.of(pod["spec"]["containers"][place], facts)
        body = _marked(_changed(pod, place, facts), facts.key, injected=facts.mark, said=said)
    except Skip as reason:
        return skipped(pod, facts.key, reason)
    return Outcome(body, warnings=tuple(f"kvpool: {text}" for text in said))


def skipped(pod: Mapping[str, Any], pool: PoolKey | None, reason: Skip) -> Outcome:
    """Return the Pod with nothing but the reason on it.

    Args:
        pool: None where what names it can mean none.
    """
    return Outcome(_marked(dict(pod), pool, skip=str(reason)), warnings=(f"kvpool: {reason}",))


def _marked(
    pod: Json,
    pool: PoolKey | None,
    *,
    injected: str | None = None,
    skip: str | None = None,
    said: tuple[str, ...] = (),
) -> Json:
    metadata = pod.get("metadata", {})
    # Pods of Ray have no annotation of their own; with it they are found again.
    named = {names.POOL: "/".join(pool)} if pool is not None else {}
    annotations = {**named, **(metadata.get("annotations") or {})}
    marks = {names.INJECTED: injected, names.SKIP_REASON: skip}
    if injected is None or names.INJECTED not in annotations:  # a second look finds what the first one changed
        marks[names.WARNING] = "; ".join(said) or None
    for key, value in marks.items():
        if value is None:
            annotations.pop(key, None)
        else:
            annotations[key] = value
    label = consumer_value(*pool) if pool is not None and injected is not None else names.NO_POOL
    labels = {**(metadata.get("labels") or {}), names.CONSUMER: label}
    return {**pod, "metadata": {**metadata, "annotations": annotations, "labels": labels}}


def _changed(pod: Mapping[str, Any], place: int, facts: Facts) -> Json:
    spec = pod["spec"]
    container = spec["containers"][place]
    brings_payload = _brings_payload(container, facts)
    volumes, mounts = _volumes(facts)
    if brings_payload:
        volumes.append(payload.VOLUME)
        mounts.append(payload.MOUNT)
    _refuse_taken(spec, container, mounts, volumes)
    changed = {
        **container,
        "env": environment.extended(container, facts, brings_payload=brings_payload),
        "volumeMounts": merge_list(container.get("volumeMounts") or [], mounts, "mountPath"),
    }
    containers = [changed if number == place else one for number, one in enumerate(spec["containers"])]
    spec = {**spec, "containers": containers, "volumes": merge_list(spec.get("volumes") or [], volumes, "name")}
    if brings_payload:
        init = payload.init_container(facts.payload_image, spec.get("securityContext") or {})
        spec["initContainers"] = merge_list(spec.get("initContainers") or [], [init], "name")
    return memory.raised({**pod, "spec": spec}, place, {"memory": facts.cpu_tier, "ephemeral-storage": facts.disk})


def _brings_payload(container: Mapping[str, Any], facts: Facts) -> bool:
    if facts.delivery is Delivery.AUTO:
        return payload.is_needed(str(container.get("image", "")), facts.engine_image)
    return facts.delivery is Delivery.INIT_CONTAINER


def _refuse_taken(
    spec: Mapping[str, Any], container: Mapping[str, Any], mounts: list[Json], volumes: list[Json]
) -> None:
    """Raise Skip where something of the user's would be overwritten."""
    config_file = environment.variables(container).get(ENV_CONFIG_FILE)
    if config_file is not None and config_file.get("value") != environment.CONFIG_FILE:
        raise Skip(
            Why.OWN_CONFIG, f"the container sets {ENV_CONFIG_FILE} itself: remove it, or the annotation {names.POOL}"
        )
    ours = {mount["mountPath"]: mount["name"] for mount in mounts}
    for mount in container.get("volumeMounts") or ():
        path = mount["mountPath"].rstrip("/") or "/"
        if path in ours and mount["name"] != ours[path]:
            raise Skip(
                Why.TAKEN, f"volume {mount['name']} is mounted at {path}, where kvpool's files go: mount it elsewhere"
            )
    known = {volume["name"]: volume for volume in volumes}
    for volume in spec.get("volumes") or ():
        wanted = known.get(volume["name"])
        if wanted is not None and not wanted.keys() <= volume.keys():
            raise Skip(Why.TAKEN, f"the Pod has a volume {volume['name']} of its own: give it another name")


def _volumes(facts: Facts) -> tuple[list[Json], list[Json]]:
    """Return volumes and their mounts. All that the pool brings is optional, so that a Pod starts
    again when its pool is gone."""
    config = {"name": names.VOLUME_CONFIG, "configMap": {"name": facts.config_map, "optional": True}}
    found = [(config, connector_config.DIRECTORY, True)]
    for name, directory, password in (
        (names.VOLUME_PASSWORD, connector_config.PASSWORD_DIRECTORY, facts.password),
        (names.VOLUME_SENTINEL, remotes.SENTINEL_PASSWORD_DIRECTORY, facts.sentinel_password),
    ):
        if password is not None:
            found.append((_password(name, *password), directory, True))
    if facts.disk:
        scratch = {"name": names.VOLUME_DISK, "emptyDir": {"sizeLimit": quantity(facts.disk)}}
        found.append((scratch, disk.DIRECTORY, False))
    mounts = [
        {"name": volume["name"], "mountPath": path, **({"readOnly": True} if read_only else {})}
        for volume, path, read_only in found
    ]
    return [volume for volume, _, _ in found], mounts


def _password(volume: str, secret: str, key: str) -> Json:
    """Return a volume that all of the container can read: who runs in it is not ours to know."""
    items = [{"key": key, "path": "password"}]
    return {"name": volume, "secret": {"secretName": secret, "optional": True, "defaultMode": 0o444, "items": items}}
