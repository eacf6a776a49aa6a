"""Folders of the node as read-only volumes, as Kubernetes manifests.

A `hostPath` volume is refused by Pod Security `restricted`, so a folder becomes a `local` PersistentVolume
with a claim that is bound to it by name.  Two things guard the folder on the host: the mount option `ro`,
and `readOnly` in the Pod's volume, without which the kubelet would change the owner of every file to the
Pod's fsGroup (with `ro` that attempt fails, so such a Pod does not start and the folder stays as it was).

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
    name = f"{namespace}-{folder.claim}"
    storage = {"storage": "1Gi"}  # required by the API; a local volume enforces no size
    volume: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": {
            "capacity": storage,
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "mountOptions": ["ro"],
            # Reserves the volume for this claim, so that no other claim binds it first.
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace,
                "name": folder.claim,
            },
            "local": {"path": str(folder.path.resolve())},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [_on_node(node)]}]}},
        },
    }
    claim: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": folder.claim, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",  # not the default class, which would make a new volume
            "volumeName": name,
            "resources": {"requests": storage},
        },
    }
    return [volume, claim]


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
