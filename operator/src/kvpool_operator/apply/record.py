"""What a workload says of how it came to its Pod template, in one of its annotations.

It is on the workload and not in the pool's status, because it has to be written together with the
template: a record that is older or newer than the template would restart Pods, or never restart
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvpool_operator.desired import Manifest
from kvpool_operator.desired.files import digest
from kvpool_operator.desired.names import ROLLOUT_ANNOTATION

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
"""Annotation of a Pod template that ``kubectl rollout restart`` writes."""
_WORDS = ("template", "asked", "restarted", "replicas")
_MOST_SPEC = 64 << 10
"""Characters of a spec that are kept. All annotations of an object together may have 256 KiB."""


@dataclass(frozen=True)
class Record:
    """How a workload came to its Pod template.

    Attributes:
        template: digest of the Pod template and of the claim templates that were last rolled out;
            empty for a workload that an operator without this record made.
        spec: the pool's spec that they are for; None where it is not known.
        asked: the value of the pool's annotation that was last answered by a roll-out.
        restarted: when somebody restarted the workload, as far as that was answered.
        replicas: the pool's own number of its Pods; empty where the spec leaves it open.
    """

    template: str
    spec: Mapping[str, Any] | None
    asked: str
    restarted: str
    replicas: str


def read(workload: Mapping[str, Any]) -> Record | None:
    """Return the record of a workload, or None where there is none that can be read."""
    annotations = workload["metadata"].get("annotations") or {}
    try:
        content = json.loads(annotations.get(ROLLOUT_ANNOTATION, ""))
        spec = content["spec"]
        words = [content[key] for key in _WORDS]
    except (ValueError, TypeError, KeyError):
        return None
    if not all(isinstance(word, str) for word in words) or not isinstance(spec, dict | None):
        return None
    template, asked, restarted, replicas = words
    return Record(template, spec, asked, restarted, replicas)


def with_record(manifest: Manifest, record: Record) -> Manifest:
    """Return a workload's manifest with its record."""
    spec = record.spec
    if spec is not None and len(_compact(spec)) > _MOST_SPEC:
        spec = None
    content = {
        "template": record.template,
        "spec": spec,
        "asked": record.asked,
        "restarted": record.restarted,
        "replicas": record.replicas,
    }
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), ROLLOUT_ANNOTATION: _compact(content)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def template_digest(manifest: Manifest) -> str:
    """Return a digest of all that replaces Pods when it changes."""
    spec = manifest["spec"]
    return digest({"template": spec["template"], "claims": spec.get("volumeClaimTemplates", [])})


def restarted_at(workload: Mapping[str, Any]) -> str:
    """Return when somebody restarted a workload; empty if nobody did."""
    annotations = workload["spec"]["template"].get("metadata", {}).get("annotations") or {}
    return str(annotations.get(RESTARTED_AT, ""))


def _compact(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
