"""Whether a user's edit of the pool is a reason for other Pods, or only another operator is.

Found by computing a second time what this operator makes of the spec that a workload was last
rolled out for. The workloads of a pool mostly have one such spec in common, so what was computed
for one of them serves the others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from kvpool_connector.config import ConfigError
from kvpool_operator.api import InvalidSpec, parse_spec
from kvpool_operator.apply.children import WORKLOADS
from kvpool_operator.apply.record import template_digest
from kvpool_operator.desired import Manifest, Pool, desired
from kvpool_operator.observe.cache import Key, key_of


class Specs:
    """The specs of one pool, the present one and those of before, while its roll-outs are decided."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.present = pool.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        """The spec as the user wrote it, without this operator's defaults."""
        self._known: dict[str, Mapping[Key, str] | None] = {}

    def is_edited(self, wanted: Manifest, live: Mapping[str, Any], spec: Mapping[str, Any] | None) -> bool:
        """Return whether an edit of the pool's spec is a reason for another template.

        A spec that is not known, or that this operator no longer takes, is none: what cannot be
        judged waits.

        Args:
            spec: that the workload was last rolled out for.
        """
        if spec is None or spec == self.present:
            return False
        name = json.dumps(spec, sort_keys=True)
        if name not in self._known:
            self._known[name] = self._templates(spec)
        templates = self._known[name]
        return templates is not None and templates.get(key_of(live)) != template_digest(wanted)

    def _templates(self, spec: Mapping[str, Any]) -> Mapping[Key, str] | None:
        """Return the digests of the templates that the spec would lead to; None if it is not taken."""
        try:
            manifests = desired(dataclasses.replace(self.pool, spec=parse_spec(dict(spec))))
        except (InvalidSpec, ConfigError):
            return None
        workloads = (one for one in manifests if one["kind"] in WORKLOADS)
        return {key_of(one): template_digest(one) for one in workloads}
