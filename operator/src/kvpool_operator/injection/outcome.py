"""What comes out: a changed Pod, or a Pod with the reason why it was left alone."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Why(enum.StrEnum):
    """The first word of a skip reason. ``docs/injection.md`` says for each what to do."""

    BAD_REFERENCE = "BadReference"
    POOL_MISSING = "PoolMissing"
    POOL_NOT_READY = "PoolNotReady"
    NO_ANSWER = "NoAnswer"
    OFF = "InjectionOff"
    OTHER_TYPE = "OtherConnectorType"
    NOT_ALLOWED = "NamespaceNotAllowed"
    NOT_ACCEPTED = "NamespaceDoesNotAccept"
    SECRET_NOT_SHARED = "SecretNotShared"  # noqa: S105  (a reason)
    NO_VLLM = "NoVLLM"
    SEVERAL = "SeveralVLLM"
    OWN_CONFIG = "OwnConfiguration"
    TAKEN = "NameTaken"
    FAULT = "OperatorFault"


_MOST_REASON = 2048
"""Characters of a reason, which may quote what others wrote. It becomes an annotation, and the API server refuses an
object whose annotations have more than 256 KiB together."""


class Skip(Exception):
    """Leave the Pod as it is. The message says what to do."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(f"{why}: {message}"[:_MOST_REASON])
        self.why = why
        self.message = message


@dataclass(frozen=True)
class Outcome:
    """A Pod after admission.

    Attributes:
        body: what it becomes; the same object where nothing changes.
        warnings: shown to whoever sent it.
    """

    body: dict[str, Any]
    warnings: tuple[str, ...] = ()
