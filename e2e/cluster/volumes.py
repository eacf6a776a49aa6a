"""Folders of the node as volumes, as Kubernetes manifests: read-only ones, and empty ones to be written.

A `hostPath` volume is refused by Pod Security `restricted`, so a folder becomes a `local` PersistentVolume
with a claim that is bound to it by name.  Two things guard the folder on the host: the mount option `ro`,
and `readOnly` in the Pod's volume, without which the kubelet would change the owner of every file to the
Pod's fsGroup (with `ro` that attempt fails, so such a Pod does not start and the folder stays as it was).
A folder to be written is given to that fsGroup. Nothing provisions volumes here: one is made for each claim beforehand.

Everything here is pure.  Manifests are JSON, which kubectl reads as it does YAML.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True)
class HostFolder:
    """A folder of the node, the name of the claim for it, and where a container sees it."""

    claim: str
    path: Path
    mount_path: str = ""


def host_folder_manifests(
    folder: HostFolder, *, node: str, namespace: str, labels: Mapping[str, str] | None = None
) -> list[Manifest]:
    """A PersistentVolume and the claim bound to it.  The volume's name carries the namespace: volumes are global."""
    volume = _volume(folder, node=node, namespace=namespace, storage="1Gi", mode="ReadOnlyMany", labels=labels)
    volume["spec"]["mountOptions"] = ["ro"]
    claim: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": folder.claim, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",  # not the default class, which would make a new volume
            "volumeName": volume["metadata"]["name"],
            "resources": {"requests": volume["spec"]["capacity"]},
        },
    }
    return [volume, claim]


def writable_volume(folder: HostFolder, *, node: str, namespace: str, storage: str) -> Manifest:
    """A PersistentVolume for a claim that somebody else makes, of this size at most.

    The claim names no storage class, as those of StatefulSets that leave it to the cluster.
    """
    return _volume(folder, node=node, namespace=namespace, storage=storage, mode="ReadWriteOnce", labels=None)


def _volume(
    folder: HostFolder, *, node: str, namespace: str, storage: str, mode: str, labels: Mapping[str, str] | None
) -> Manifest:
    """A folder, reserved for one claim so that no other one binds it first."""
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": folder.claim}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{folder.claim}", "labels": dict(labels or {})},
        "spec": {
            "capacity": {"storage": storage},  # required by the API; a local volume enforces no size
            "accessModes": [mode],
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": claim,
            "local": {"path": str(folder.path.resolve())},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [_on_node(node)]}]}},
        },
    }


def _on_node(node: str) -> Manifest:
    return {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}


def pod_volumes(folders: Iterable[HostFolder]) -> tuple[list[Manifest], list[Manifest]]:
    """`volumes` of a Pod and `volumeMounts` of its container for these folders."""
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    for folder in folders:
        volumes.append({"name": folder.claim, "persistentVolumeClaim": {"claimName": folder.claim, "readOnly": True}})
        mounts.append({"name": folder.claim, "mountPath": folder.mount_path or f"/{folder.claim}", "readOnly": True})
    return volumes, mounts


def render(manifests: Iterable[Manifest]) -> str:
    """One document for `kubectl apply -f -`."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}, indent=2) + "\n"
