"""What a Pod that a controller made shows of the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..kubectl import Kubectl, eventually

POOL = "kvpool.dev/pool"
INJECTED = "kvpool.dev/injected"
SKIP_REASON = "kvpool.dev/skip-reason"
NAME = "demo"
"""Of the pool."""


def annotation(body: Mapping[str, Any], name: str) -> str:
    return str(body["metadata"].get("annotations", {}).get(name, ""))


def label(body: Mapping[str, Any], name: str) -> str:
    return str(body["metadata"].get("labels", {}).get(name, ""))


def container(pod: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in pod["spec"]["containers"] if one["name"] == name)
    return found


def assert_carries_the_cache(kubectl: Kubectl, pod: Mapping[str, Any], name: str, config_hash: str) -> None:
    """Environment, volumes and mounts, each once, and all that they name exists in the Pod's namespace."""
    assert annotation(pod, INJECTED) == f"{kubectl.namespace}/{NAME}@{config_hash}", pod["metadata"]
    assert not annotation(pod, SKIP_REASON)
    main = container(pod, name)
    env = [one["name"] for one in main["env"]]
    assert {"KVPOOL_CONFIG_FILE", "KVPOOL_CONFLICT_POLICY", "KVPOOL_ON_FAILURE", "PYTHONHASHSEED"} <= set(env)
    assert len(env) == len(set(env))
    (path,) = [one["value"] for one in main["env"] if one["name"] == "PYTHONPATH"]
    assert path in {one["mountPath"] for one in main["volumeMounts"]}
    assert "kvpool-payload" in {one["name"] for one in pod["spec"]["initContainers"]}
    paths = [one["mountPath"] for one in main["volumeMounts"]]
    assert {"kvpool-config", "kvpool-store-auth"} <= {one["name"] for one in main["volumeMounts"]}
    assert len(paths) == len(set(paths))
    volumes = [one["name"] for one in pod["spec"]["volumes"]]
    assert len(volumes) == len(set(volumes))
    for volume in pod["spec"]["volumes"]:
        if volume["name"].startswith("kvpool-"):
            for kind, key in (("configMap", "name"), ("secret", "secretName")):
                if kind in volume:
                    kubectl.must_get(kind.lower(), volume[kind][key])
    seed = next(one for one in main["env"] if one["name"] == "PYTHONHASHSEED")["valueFrom"]["secretKeyRef"]
    assert seed["key"] in kubectl.must_get("secret", seed["name"])["data"]


def config_hash(kubectl: Kubectl) -> str:
    """Of the pool's present spec."""
    kubectl.await_condition(NAME, "ConfigRendered", reason="Rendered")
    return str(kubectl.must_get("kvcachepool", NAME)["status"]["config"]["hash"])


def edit_pool(kubectl: Kubectl, spec: Mapping[str, Any]) -> str:
    """Change the pool in a way that changes what engines read; returns the new hash."""
    before = config_hash(kubectl)
    kubectl("patch", "kvp", NAME, "--type=merge", "-p", json.dumps({"spec": spec}))
    return str(eventually(lambda: (now := config_hash(kubectl)) != before and now, what="a new configuration"))
