"""Whether an object in the cluster still is what was applied. Pure.

The API server adds defaults and rewrites values ("4096Mi" becomes "4Gi"), so equality is too strict, and a remembered hash
alone would miss a change by hand. An object is as wanted when its annotation has the wanted manifest's hash and it still
holds every field of the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import GROUP
from kvpool_operator.desired.files import digest

HASH_ANNOTATION = f"{GROUP}/manifest-hash"
_QUANTITY_PARENTS = {"limits", "requests"}
_SET_KEYS = ("name", "mountPath", "containerPort", "uid")


def sign(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its own hash as annotation. Secrets are left out of the hash: it can be read by more people."""
    visible = {key: value for key, value in manifest.items() if manifest["kind"] != "Secret" or key != "data"}
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), HASH_ANNOTATION: digest(visible)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def holds(live: Any, wanted: Any, key: str = "") -> bool:
    """Whether ``live`` has everything that ``wanted`` (a signed manifest) has. What is only in ``live`` is a default or
    somebody else's."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(
            _is_empty(value) if name not in live else holds(live[name], value, _context(key, name))
            for name, value in wanted.items()
        )
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return isinstance(live, Sequence) and _holds_list(live, wanted, key)
    return bool(live == wanted) or (key == "quantity" and _same_quantity(live, wanted))


def _context(parent: str, name: str) -> str:
    return "quantity" if parent in _QUANTITY_PARENTS or name == "sizeLimit" else name


def _holds_list(live: Sequence[Any], wanted: Sequence[Any], key: str) -> bool:
    identity = next(
        (name for name in _SET_KEYS if wanted and isinstance(wanted[0], Mapping) and name in wanted[0]), None
    )
    if identity is None:
        return len(live) == len(wanted) and all(holds(one, other, key) for one, other in zip(live, wanted, strict=True))
    by_identity = {entry.get(identity): entry for entry in live}
    return all(holds(by_identity.get(entry.get(identity)), entry, key) for entry in wanted)


def _is_empty(value: Any) -> bool:
    """The API server drops empty values."""
    return value is None or value is False or value in ("", 0, [], {})


def _same_quantity(one: Any, other: Any) -> bool:
    try:
        return _milli(one) == _milli(other)
    except ValueError:
        return False


def _milli(value: Any) -> int:
    text = str(value)
    if text.endswith("m"):
        return parse_quantity(text[:-1])
    try:
        return parse_quantity(text) * 1000
    except ValueError:  # 0.5 of a CPU
        return int(float(text) * 1000)
