"""The connector in Pods whose image may have none: an init container copies it into an emptyDir, which
stands last in ``PYTHONPATH``.

It serves kvpool's own engines and users' Pods alike. The folder is the same for every Python and
architecture that vLLM's images have (``images/payload.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpool_operator.desired.podpatch import merge_list
from kvpool_operator.desired.pool import Manifest

NAME = "kvpool-payload"
"""Of the init container and of the volume."""
DIRECTORY = "/opt/kvpool-payload"
VOLUME: Manifest = {"name": NAME, "emptyDir": {}}
MOUNT: Manifest = {"name": NAME, "mountPath": DIRECTORY, "readOnly": True}
_PATH = "PYTHONPATH"
_KEPT_PATH = "KVPOOL_KEPT_PYTHONPATH"
"""A ``PYTHONPATH`` that comes from another object goes by this name, and ours refers to it."""


def is_needed(image: str, engine_image: str) -> bool:
    """Return whether an image may lack the connector: any but the operator's own, whatever its tag."""
    return _repository(image) != _repository(engine_image)


def _repository(image: str) -> str:
    """Return the name of an image without tag, digest and the registry that is the default."""
    path, slash, last = image.partition("@")[0].rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}".removeprefix("docker.io/")


def init_container(image: str, pod_context: Mapping[str, Any]) -> Manifest:
    """Return the container that copies the connector, under Pod Security "restricted".

    It names no user: some clusters assign one, and refuse others. The image has one of its own.

    Args:
        pod_context: the Pod's ``securityContext``. Where it says root, this container runs as root.
    """
    as_root = pod_context.get("runAsUser") == 0
    return {
        "name": NAME,
        "image": image,
        "args": [DIRECTORY],
        "resources": {
            "requests": {"cpu": "10m", "memory": "32Mi"},
            "limits": {"cpu": "500m", "memory": "128Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            **({} if as_root else {"runAsNonRoot": True}),
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": NAME, "mountPath": DIRECTORY}],
    }


def on_path(container: Mapping[str, Any]) -> list[Manifest]:
    """Return a container's variables with the folder at the end of ``PYTHONPATH``: a package of the
    image or the user must never be hidden.

    The kubelet fills in ``$(NAME)`` from ``envFrom`` and from entries of ``env`` that come before,
    also in the entry that has that name itself (``makeEnvironmentVariables`` in its
    ``kubelet_pods.go``). What it finds nowhere it leaves as it is, and Python passes over a folder
    that is not there.
    """
    given = list(container.get("env") or ())
    own = next((one for one in reversed(given) if one["name"] == _PATH), None)
    if own is None:
        before = f"$({_PATH})" if _may_come_from_elsewhere(container) else ""
    elif "valueFrom" in own:
        given = [{**one, "name": _KEPT_PATH} if one is own else one for one in given]
        before = f"$({_KEPT_PATH})"
    else:
        before = str(own.get("value") or "")
    if DIRECTORY in before.split(":"):
        return given
    value = f"{before}:{DIRECTORY}" if before else DIRECTORY
    return merge_list(given, [{"name": _PATH, "value": value}], "name")


def _may_come_from_elsewhere(container: Mapping[str, Any]) -> bool:
    return any(_PATH.startswith(source.get("prefix") or "") for source in container.get("envFrom") or ())
