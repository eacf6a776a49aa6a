"""A Pod with the cache in it: arguments, environment, volumes, memory, and the marks that say so.

``inject`` never changes its argument and shares what it leaves alone, so that a Pod of 900 KB costs no more than a small one.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from kvpool_connector.config import ENV_CONFIG_FILE
from kvpool_operator.desired import connector_config, disk, seed
from kvpool_operator.desired.names import consumer_value
from kvpool_operator.desired.podpatch import merge_list
from kvpool_operator.desired.stores import remotes
from kvpool_operator.injection import connectors, flags, launch, memory, names
from kvpool_operator.injection.facts import Facts
from kvpool_operator.injection.launch import SHELL_VARIABLE, Launch, Style
from kvpool_operator.injection.names import PoolKey
from kvpool_operator.injection.outcome import Deny, Outcome, Skip, Why, refuse_long

CONFIG_FILE = f"{connector_config.DIRECTORY}/{connector_config.FILE}"
ON_FAILURE = "KVPOOL_ON_FAILURE"
"""``continue``: an engine of others starts without the cache rather than not at all."""
_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
_EXPANDABLE = "expandable_segments:True"
"""vLLM 0.32 refuses it beside any KV connector (``config/vllm.py``), so the Pod would not start any more."""
_SEED = "PYTHONHASHSEED"
_PYTHON_PATH = "PYTHONPATH"
Json = dict[str, Any]


def inject(pod: Mapping[str, Any], facts: Facts) -> Outcome:
    """The Pod as it shall be: with the cache, or with the reason why not."""
    try:
        return Outcome(_marked(_changed(pod, facts), facts.key, injected=facts.mark))
    except Skip as reason:
        return skipped(pod, facts.key, reason)
    except Deny as refusal:
        return Outcome(dict(pod), denied=str(refusal))


def skipped(pod: Mapping[str, Any], pool: PoolKey | None, reason: Skip) -> Outcome:
    """The Pod with nothing but the reason on it.

    Args:
        pool: None where what names it can mean none.
    """
    return Outcome(_marked(dict(pod), pool, skip=str(reason)), warnings=(f"kvpool: {reason}",))


def _marked(pod: Json, pool: PoolKey | None, *, injected: str | None = None, skip: str | None = None) -> Json:
    metadata = pod.get("metadata", {})
    # Pods of Ray have no annotation of their own; with it they are found again.
    named = {names.POOL: "/".join(pool)} if pool is not None else {}
    annotations = {**named, **(metadata.get("annotations") or {})}
    for key, value in ((names.INJECTED, injected), (names.SKIP_REASON, skip)):
        if value is None:
            annotations.pop(key, None)
        else:
            annotations[key] = value
    label = consumer_value(*pool) if pool is not None and injected is not None else names.NO_POOL
    labels = {**(metadata.get("labels") or {}), names.CONSUMER: label}
    return {**pod, "metadata": {**metadata, "annotations": annotations, "labels": labels}}


def _changed(pod: Mapping[str, Any], facts: Facts) -> Json:
    where = launch.find(pod)
    spec = pod["spec"]
    container = spec["containers"][where.index]
    _refuse_taken(spec, container, facts)
    if where.style is not Style.RAY:  # its connector is in the RayService, and would not find its configuration
        _refuse_allocator(container)
    changed = _with_arguments(container, where, facts)
    changed = _with_environment(changed, facts)
    changed = _with_mounts(changed, facts)
    volumes = _volumes(facts)
    if _lacks_shared_memory(container, where):
        volumes.append({"name": names.VOLUME_SHM, "emptyDir": {"medium": "Memory"}})
        mount = {"name": names.VOLUME_SHM, "mountPath": names.SHM_DIRECTORY}
        changed = {**changed, "volumeMounts": merge_list(changed["volumeMounts"], [mount], "mountPath")}
    containers = [changed if place == where.index else one for place, one in enumerate(spec["containers"])]
    spec = {**spec, "containers": containers, "volumes": merge_list(spec.get("volumes") or [], volumes, "name")}
    if facts.payload_image:
        spec["initContainers"] = merge_list(spec.get("initContainers") or [], [_init(facts.payload_image)], "name")
    return memory.raised({**pod, "spec": spec}, where.index, facts.cpu_tier)


def _refuse_taken(spec: Mapping[str, Any], container: Mapping[str, Any], facts: Facts) -> None:
    """Nothing of the user's is overwritten."""
    config_file = next((one for one in container.get("env") or () if one["name"] == ENV_CONFIG_FILE), None)
    if config_file is not None and config_file.get("value") != CONFIG_FILE:
        raise Skip(
            Why.OWN_CONFIG, f"the container sets {ENV_CONFIG_FILE} itself: remove it, or the annotation {names.POOL}"
        )
    ours = {mount["mountPath"]: mount["name"] for mount in _mounts(facts)}
    for mount in container.get("volumeMounts") or ():
        path = mount["mountPath"].rstrip("/") or "/"
        if path in ours and mount["name"] != ours[path]:
            raise Skip(
                Why.TAKEN, f"volume {mount['name']} is mounted at {path}, where kvpool's files go: mount it elsewhere"
            )
    known = {volume["name"]: volume for volume in _volumes(facts)}
    for volume in spec.get("volumes") or ():
        wanted = known.get(volume["name"])
        if wanted is not None and not wanted.keys() <= volume.keys():
            raise Skip(Why.TAKEN, f"the Pod has a volume {volume['name']} of its own: give it another name")


def _refuse_allocator(container: Mapping[str, Any]) -> None:
    """Leave an engine that vLLM would refuse with a connector as it is; see `_EXPANDABLE`.

    A value from elsewhere (``envFrom``, the image) cannot be seen here: the connector's plug-in sees it in the engine.
    """
    value = next((one.get("value") for one in container.get("env") or () if one["name"] == _ALLOCATOR), None)
    if _EXPANDABLE in (value or "") and not flags.has(launch.words(container), flags.CUMEM):
        raise Skip(
            Why.ALLOCATOR,
            f"vLLM does not start with a KV connector and {_ALLOCATOR}={_EXPANDABLE}: take it out of the variable, or add "
            f"{flags.CUMEM}",
        )


def _with_arguments(container: Mapping[str, Any], where: Launch, facts: Facts) -> Json:
    if where.style is Style.RAY:
        return dict(container)
    if where.style is Style.SHELL:
        return _with_shell_arguments(container, facts)
    command, arguments = list(container.get("command") or []), list(container.get("args") or [])
    line = [*command, *arguments]
    _refuse_line(line, facts)
    wanted = _transfer(line, facts)
    if wanted is not None:
        command, arguments = flags.without(command, flags.TRANSFER), flags.without(arguments, flags.TRANSFER)
        arguments += [flags.TRANSFER, wanted]
    if not flags.has(line, flags.HASH_ALGORITHM):
        arguments += [flags.HASH_ALGORITHM, connectors.HASH_ALGORITHM]
    return {**container, **({"command": command} if command else {}), "args": arguments}


def _transfer(line: list[str], facts: Facts) -> str | None:
    """Return the connectors that vLLM shall have, as JSON. It is None if ours is on this line.

    Raises:
        Skip: what is there can't be read, or is left alone.
        Deny: the pool's conflict policy refuses it.
    """
    try:
        wanted = connectors.combined(flags.structured(line, flags.TRANSFER), facts.conflict_policy)
        return None if wanted is None else connectors.to_json(wanted)
    except (ValueError, RecursionError) as error:
        cause = "nested too deeply" if isinstance(error, RecursionError) else error
        raise Skip(Why.UNREADABLE, f"{flags.TRANSFER} can't be read ({cause}): write a JSON object after it") from None


def _with_shell_arguments(container: Mapping[str, Any], facts: Facts) -> Json:
    """The script's words are read twice by shells, so ours have no quote, no brace and no space."""
    variable = next((one for one in container.get("env") or () if one["name"] == SHELL_VARIABLE), None)
    if variable is not None and "valueFrom" in variable:
        raise Skip(Why.SHELL, f"{SHELL_VARIABLE} comes from another object: set its value in the container")
    value = str((variable or {}).get("value") or "")
    refuse_long(value, f"the variable {SHELL_VARIABLE} of container {container['name']}", "shorten it")
    line = [*_words(launch.script(container) or ""), *_words(value), *launch.positional(container)]
    _refuse_line(line, facts)
    existing = flags.find(line, flags.TRANSFER)
    added: list[str] = []
    if existing and not any(connectors.OURS in (flag.value or "") for flag in existing):
        connectors.refuse_text(f"a {flags.TRANSFER} in its shell script or in {SHELL_VARIABLE}", facts.conflict_policy)
    if not existing:
        added += connectors.dotted()
    if not flags.has(line, flags.HASH_ALGORITHM):
        added += [flags.HASH_ALGORITHM, connectors.HASH_ALGORITHM]
    if not added:
        return dict(container)
    if variable is None and (source := launch.possible_source(container)) is not None:
        raise Skip(
            Why.SHELL,
            f"{SHELL_VARIABLE} may come from {source} in envFrom, and ours would take its place: write the variable "
            "with its value into the container's env, or start vLLM by command and args without a shell",
        )
    entry = {"name": SHELL_VARIABLE, "value": " ".join([*([value] if value else []), *added])}
    return {**container, "env": merge_list(container.get("env") or [], [entry], "name")}


def _words(text: str) -> list[str]:
    """Words of a shell's text, as far as they matter here; a text with a loose quote is split at spaces."""
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def _refuse_line(line: list[str], facts: Facts) -> None:
    algorithm = flags.last(line, flags.HASH_ALGORITHM)
    if flags.has(line, flags.HASH_ALGORITHM) and algorithm != connectors.HASH_ALGORITHM:
        raise Skip(
            Why.HASH,
            f"vLLM is told {flags.HASH_ALGORITHM} {algorithm}, and keys would not agree with those of other engines: remove it, "
            f"or set it to {connectors.HASH_ALGORITHM}",
        )
    off, on = flags.find(line, flags.NO_CACHING), flags.find(line, flags.CACHING)
    if off and (not on or on[-1].start < off[-1].start):
        raise Skip(
            Why.CACHING_OFF,
            f"vLLM's prefix caching is off, so nothing could be found in a cache: remove {flags.NO_CACHING}",
        )
    if flags.has(line, flags.OFFLOADING):
        connectors.refuse_text(f"its own offloading ({flags.OFFLOADING})", facts.conflict_policy)


def _with_environment(container: Json, facts: Facts) -> Json:
    own = {one["name"]: one for one in container.get("env") or ()}
    added: list[Json] = [{"name": ENV_CONFIG_FILE, "value": CONFIG_FILE}, _seed_variable(facts)]
    if ON_FAILURE not in own:
        added.append({"name": ON_FAILURE, "value": "continue"})
    if facts.payload_image:
        added.append({"name": _PYTHON_PATH, "value": _python_path(own.get(_PYTHON_PATH, {}))})
    return {**container, "env": merge_list(container.get("env") or [], added, "name")}


def _seed_variable(facts: Facts) -> Json:
    """Replaces a seed of the user's: with another one no block of the pool would ever be found."""
    reference = {"name": facts.seed_secret, "key": seed.KEY, "optional": True}
    return {"name": _SEED, "valueFrom": {"secretKeyRef": reference}}


def _python_path(variable: Mapping[str, Any]) -> str:
    """Ours comes last: a package of the image or the user must never be hidden by one of ours."""
    if "valueFrom" in variable:
        raise Skip(
            Why.TAKEN,
            f"{_PYTHON_PATH} comes from another object, so nothing can be added: set its value in the container",
        )
    parts = [part for part in str(variable.get("value") or "").split(":") if part]
    return ":".join(parts if names.PAYLOAD_DIRECTORY in parts else [*parts, names.PAYLOAD_DIRECTORY])


def _with_mounts(container: Json, facts: Facts) -> Json:
    return {**container, "volumeMounts": merge_list(container.get("volumeMounts") or [], _mounts(facts), "mountPath")}


def _mounts(facts: Facts) -> list[Json]:
    mounts = [{"name": names.VOLUME_CONFIG, "mountPath": connector_config.DIRECTORY, "readOnly": True}]
    if facts.password is not None:
        mounts.append(
            {"name": names.VOLUME_PASSWORD, "mountPath": connector_config.PASSWORD_DIRECTORY, "readOnly": True}
        )
    if facts.sentinel_password is not None:
        mounts.append(
            {"name": names.VOLUME_SENTINEL, "mountPath": remotes.SENTINEL_PASSWORD_DIRECTORY, "readOnly": True}
        )
    if facts.disk is not None:
        mounts.append({"name": names.VOLUME_DISK, "mountPath": disk.DIRECTORY})
    if facts.payload_image:
        mounts.append({"name": names.VOLUME_PAYLOAD, "mountPath": names.PAYLOAD_DIRECTORY, "readOnly": True})
    return mounts


def _volumes(facts: Facts) -> list[Json]:
    """All that the pool brings is optional, so that a Pod starts again when its pool is gone."""
    config = {"name": facts.config_map, "optional": True}
    volumes: list[Json] = [{"name": names.VOLUME_CONFIG, "configMap": config}]
    for name, password in ((names.VOLUME_PASSWORD, facts.password), (names.VOLUME_SENTINEL, facts.sentinel_password)):
        if password is not None:
            secret, key = password
            # Readable by all of the container: who runs in it is not ours to know.
            source = {
                "secretName": secret,
                "optional": True,
                "defaultMode": 0o444,
                "items": [{"key": key, "path": "password"}],
            }
            volumes.append({"name": name, "secret": source})
    if facts.disk is not None:
        volumes.append({"name": names.VOLUME_DISK, "emptyDir": dict(facts.disk)})
    if facts.payload_image:
        volumes.append({"name": names.VOLUME_PAYLOAD, "emptyDir": {}})
    return volumes


def _lacks_shared_memory(container: Mapping[str, Any], where: Launch) -> bool:
    """Workers of tensor parallelism talk over shared memory, of which a container has 64 MiB. The cache itself uses none."""
    if where.style is not Style.ARGUMENTS:
        return False
    ranks = flags.last(launch.words(container), flags.TENSOR_PARALLEL) or "1"
    mounted = {mount["mountPath"].rstrip("/") for mount in container.get("volumeMounts") or ()}
    # Compared as text: Python reads no number of some thousand digits.
    return ranks.isdecimal() and ranks.lstrip("0") not in ("", "1") and names.SHM_DIRECTORY not in mounted


def _init(image: str) -> Json:
    """Copies the connector into an emptyDir, under Pod Security "restricted"."""
    return {
        "name": names.PAYLOAD_CONTAINER,
        "image": image,
        "args": [names.PAYLOAD_DIRECTORY],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": names.VOLUME_PAYLOAD, "mountPath": names.PAYLOAD_DIRECTORY}],
    }
