"""The disk tier's volume in engine Pods.

Two engine processes may never share a directory. With claims that kvpool makes each Pod of the StatefulSet has its own volume;
in a claim of the user's each Pod has its own folder, by its name. An emptyDir is the Pod's own anyway. A path without a
volume is the user's affair.
"""

from __future__ import annotations

from kvpool_connector.config import parse_quantity
from kvpool_operator.api.tiers import DiskTier
from kvpool_operator.desired.pool import Manifest, Pool

VOLUME = "kvpool-disk"
DIRECTORY = "/var/lib/kvpool"
_SPARE = 1.1
"""The slab is as large as the tier; journal and file system need a little more."""
_JOURNAL = 64 << 20


def directory(tier: DiskTier) -> str:
    """Where the connector keeps its files."""
    return tier.path or DIRECTORY


def volume_bytes(tier: DiskTier) -> int:
    """What the volume needs, in whole MiB."""
    return -(-int(parse_quantity(tier.size) * _SPARE + _JOURNAL) // (1 << 20)) << 20


def _quantity(tier: DiskTier) -> str:
    return f"{volume_bytes(tier) >> 20}Mi"


def volumes(pool: Pool) -> list[Manifest]:
    """Volumes of the Pod spec. Those of claim templates are added by Kubernetes."""
    tier = pool.spec.tiers.disk
    if tier is None or tier.path is not None:
        return []
    if tier.claim is None:
        own = tier.volume.empty_dir if tier.volume and tier.volume.empty_dir else {}
        return [{"name": VOLUME, "emptyDir": {"sizeLimit": _quantity(tier), **own}}]
    if tier.claim.claim_name is None:
        return []
    return [{"name": VOLUME, "persistentVolumeClaim": {"claimName": tier.claim.claim_name}}]


def scratch_bytes(pool: Pool) -> int:
    """Return the size of an emptyDir for the disk tier in a user's Pod, whose volumes are not kvpool's
    to make; 0 where none is needed."""
    tier = pool.spec.tiers.disk
    return 0 if tier is None or tier.path is not None else volume_bytes(tier)


def mounts(pool: Pool) -> list[Manifest]:
    tier = pool.spec.tiers.disk
    if tier is None or tier.path is not None:
        return []
    shared = tier.claim is not None and tier.claim.claim_name is not None
    own_folder = {"subPathExpr": "$(POD_NAME)"} if shared else {}
    return [{"name": VOLUME, "mountPath": DIRECTORY, **own_folder}]


def environment(pool: Pool) -> list[Manifest]:
    """What the mounts refer to."""
    if not any("subPathExpr" in mount for mount in mounts(pool)):
        return []
    return [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def claim_templates(pool: Pool) -> Manifest:
    """The part of a StatefulSet's spec that makes a claim for each Pod; empty when the user has one.

    Claims end with the engine or the pool. A smaller number of replicas keeps them: the Pods that come back find their blocks.
    """
    tier = pool.spec.tiers.disk
    if tier is None or tier.claim is None or tier.claim.claim_name is not None:
        return {}
    storage_class = {"storageClassName": tier.claim.storage_class_name} if tier.claim.storage_class_name else {}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": VOLUME},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": _quantity(tier)}},
            **storage_class,
        },
    }
    return {
        "volumeClaimTemplates": [claim],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
    }
