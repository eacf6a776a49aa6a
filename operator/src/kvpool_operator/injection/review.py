"""AdmissionReview in, AdmissionReview out (admission.k8s.io/v1)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from kvpool_operator.injection.outcome import Outcome
from kvpool_operator.injection.patch import diff

API_VERSION = "admission.k8s.io/v1"
_WARNING = 240
"""Characters of a warning; clients cut longer ones."""


class BadReview(ValueError):
    """Not an AdmissionReview that we can answer."""


def request_of(review: Any) -> Mapping[str, Any]:
    """The request inside.

    Raises:
        BadReview: it is none.
    """
    request = review.get("request") if isinstance(review, Mapping) else None
    if not isinstance(request, Mapping) or not isinstance(request.get("object"), Mapping) or "uid" not in request:
        raise BadReview("not an AdmissionReview with a request and an object")
    return request


def response(request: Mapping[str, Any], outcome: Outcome | None) -> dict[str, Any]:
    """The answer.

    Args:
        outcome: None lets the object pass as it is.
    """
    answer: dict[str, Any] = {"uid": request["uid"], "allowed": True}
    if outcome is not None:
        operations = diff(request["object"], outcome.body)
        if operations:
            text = json.dumps(operations, separators=(",", ":"))
            answer |= {"patchType": "JSONPatch", "patch": base64.b64encode(text.encode()).decode()}
        if outcome.warnings:
            answer["warnings"] = [warning[:_WARNING] for warning in outcome.warnings]
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": answer}
