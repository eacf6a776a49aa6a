"""What the owners of a Secret and of a Namespace write on them, so that a pool may use them."""

from __future__ import annotations

from collections.abc import Sequence

from kvpool_operator.api.types import GROUP

CREDENTIALS_LABEL = f"{GROUP}/store-credentials"
"""Label of a Secret whose owner lets pools of its namespace send it to a store: ``true``."""
ACCEPTS = f"{GROUP}/accepts-pools"
"""Annotation of a Namespace: ``<namespace>/<name>`` of each pool that it takes, separated by commas."""
_REFUSING = "namespaces in spec.injection.allowedNamespaces that do not take this pool: "


def refusal(namespaces: Sequence[str]) -> str:
    """Return the beginning of a condition's message: these namespaces do not take the pool."""
    return f"{_REFUSING}{', '.join(namespaces)}. "


def refusing(message: str) -> frozenset[str]:
    """Return the namespaces that such a message names. Their names have neither a dot nor a comma."""
    return frozenset(message.removeprefix(_REFUSING).partition(". ")[0].split(", "))
