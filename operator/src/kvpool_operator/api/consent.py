"""What the owners of a Secret and of a Namespace write on them, so that a pool may use them."""

from __future__ import annotations

from kvpool_operator.api.types import GROUP

CREDENTIALS_LABEL = f"{GROUP}/store-credentials"
"""Label of a Secret whose owner lets pools of its namespace send it to a store: ``true``."""
ACCEPTS = f"{GROUP}/accepts-pools"
"""Annotation of a Namespace: ``<namespace>/<name>`` of each pool that it takes, separated by commas."""
