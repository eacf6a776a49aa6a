"""What becomes of the claims of a StatefulSet whose claim templates change. Pure.

The API server freezes claim templates, and a claim can only grow. So there are three steps, each
of which leaves all Pods and all claims as they are: grow the claims in place, loosen them from the
StatefulSet, and put another StatefulSet in its place, which takes over the Pods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvpool_connector.config import parse_quantity
from kvpool_operator.desired import names
from kvpool_operator.status.observed import ClaimFault

_FIELDS = {"engine": "spec.tiers.disk.size", "etcd": "spec.backend.etcd.storage"}
"""Fields of a pool that size the claims of a component."""

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Growth:
    """Claims that are to grow.

    Attributes:
        sizes: the wanted size by the name of the claim template.
    """

    sizes: Mapping[str, str]


def difference(live: Object, wanted: Object) -> Growth | ClaimFault | None:
    """Compare the claim templates of two StatefulSets.

    Returns:
        None if they ask for the same claims, the growth if some are only larger, or why the change
        cannot be carried out.
    """
    old = _templates(live)
    new = _templates(wanted)
    if old.keys() != new.keys():
        return _other_claims(wanted)
    sizes = {}
    for name, template in new.items():
        if _is_other(old[name], template):
            return _other_claims(wanted)
        before = parse_quantity(_size(old[name]))
        after = parse_quantity(_size(template))
        if after < before:
            return ClaimFault(
                "ClaimCannotShrink",
                f"{_named(wanted)}: a claim cannot shrink from {_size(old[name])} to "
                f"{_size(template)}: raise {_field(wanted)} again, or remove what it belongs to "
                "and make it again, which loses its content",
            )
        if after > before:
            sizes[name] = _size(template)
    return Growth(sizes) if sizes else None


def small(claims: Sequence[Object], live: Object, growth: Growth) -> dict[str, str]:
    """Return the claims of a StatefulSet that ask for less than is wanted, with the wanted size."""
    return {
        claim["metadata"]["name"]: size
        for claim, size in _of(claims, live, growth)
        if parse_quantity(_size(claim)) < parse_quantity(size)
    }


def unfinished(claims: Sequence[Object], live: Object, growth: Growth) -> tuple[str, ...]:
    """Return the claims whose volumes are not yet as large as wanted.

    A volume that only waits for its Pod to start again is large enough: the file system is enlarged
    then.
    """
    return tuple(
        str(claim["metadata"]["name"])
        for claim, size in _of(claims, live, growth)
        if not _awaits_restart(claim) and parse_quantity(_capacity(claim)) < parse_quantity(size)
    )


def made_by(claims: Sequence[dict[str, Any]], live: Object) -> list[dict[str, Any]]:
    """Return the claims that Kubernetes made from the claim templates of a StatefulSet."""
    return [claim for claim in claims if _template_of(claim, live) in _templates(live)]


def ends_with_claims(live: Object) -> bool:
    """Return whether the claims of a StatefulSet are removed when it is deleted."""
    policy = live["spec"].get("persistentVolumeClaimRetentionPolicy") or {}
    return bool(policy.get("whenDeleted") == "Delete")


def retains(live: Object) -> bool:
    """Return whether Kubernetes' controller knows that the claims outlive the StatefulSet."""
    seen = (live.get("status") or {}).get("observedGeneration", -1)
    return not ends_with_claims(live) and seen >= live["metadata"].get("generation", 0)


def owned(claims: Sequence[Object], live: Object) -> list[Object]:
    """Return the claims that would be removed together with their StatefulSet."""
    return [claim for claim in claims if len(other_owners(claim, live)) < len(_owners(claim))]


def other_owners(claim: Object, live: Object) -> list[Any]:
    """Return the owner references of a claim but for the one to its StatefulSet."""
    return [owner for owner in _owners(claim) if owner.get("uid") != live["metadata"]["uid"]]


def cannot_grow(wanted: Object, claim: str, answer: str) -> ClaimFault:
    """Return what to say of a claim that the API server lets nobody enlarge."""
    return ClaimFault(
        "ClaimCannotGrow",
        f"{_named(wanted)}: claim {claim} cannot grow: {answer}; set allowVolumeExpansion in its "
        f"StorageClass if its driver can do that, or set {_field(wanted)} back. Nothing changed",
    )


def _other_claims(wanted: Object) -> ClaimFault:
    component = wanted["metadata"]["labels"].get(names.COMPONENT_LABEL, "")
    other = (
        "add an engine of another name to spec.engines, and remove this one when that is ready"
        if component == "engine"
        else "set the former values again, or make another pool"
    )
    return ClaimFault(
        "ClaimCannotChange",
        f"{_named(wanted)}: claims cannot get another class or access mode, and none can be added "
        f"or taken away while Pods use them: {other}",
    )


def _templates(stateful_set: Object) -> dict[str, Object]:
    return {
        str(template["metadata"]["name"]): template
        for template in stateful_set["spec"].get("volumeClaimTemplates") or ()
    }


def _is_other(old: Object, new: Object) -> bool:
    keys = ("storageClassName", "accessModes")
    return any(old["spec"].get(key) != new["spec"].get(key) for key in keys)


def _of(claims: Sequence[Object], live: Object, growth: Growth) -> list[tuple[Object, str]]:
    """Return the claims that are to grow, with the wanted size."""
    sized = [(claim, growth.sizes.get(_template_of(claim, live) or "")) for claim in claims]
    return [(claim, size) for claim, size in sized if size is not None]


def _template_of(claim: Object, live: Object) -> str | None:
    """Return the name of a claim's template: <template>-<StatefulSet>-<number> is its name."""
    stem, _, number = claim["metadata"]["name"].rpartition("-")
    end = f"-{live['metadata']['name']}"
    return stem.removesuffix(end) if stem.endswith(end) and number.isdigit() else None


def _owners(claim: Object) -> list[Any]:
    return list(claim["metadata"].get("ownerReferences") or ())


def _size(claim: Object) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


def _capacity(claim: Object) -> str:
    return str((claim.get("status") or {}).get("capacity", {}).get("storage", "0"))


def _awaits_restart(claim: Object) -> bool:
    conditions = (claim.get("status") or {}).get("conditions") or ()
    return any(
        condition.get("type") == "FileSystemResizePending" and condition.get("status") == "True"
        for condition in conditions
    )


def _named(wanted: Object) -> str:
    return f"{wanted['kind']} {wanted['metadata']['name']}"


def _field(wanted: Object) -> str:
    component = wanted["metadata"]["labels"].get(names.COMPONENT_LABEL, "")
    return _FIELDS.get(component, "the size")
