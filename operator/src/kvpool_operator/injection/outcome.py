"""What comes out: a changed object, an object with the reason why it was left alone, or a refusal."""

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
    SHELL = "ShellCommand"
    NO_ARGUMENTS = "NoArguments"
    OTHER_BACKEND = "NotVLLMBackend"
    CONNECTOR = "ConnectorPresent"
    UNREADABLE = "UnreadableConnector"
    TOO_LONG = "TextTooLong"
    HASH = "HashAlgorithm"
    CACHING_OFF = "PrefixCachingOff"
    ALLOCATOR = "ExpandableSegments"
    OWN_CONFIG = "OwnConfiguration"
    TAKEN = "NameTaken"
    NOT_YAML = "NotYAML"
    NO_LLM = "NoLLMConfigs"
    FAULT = "OperatorFault"


MOST_TEXT = 64 << 10
"""Characters of a text in a Pod that is read: reading some texts takes time that grows faster than they do."""
_MOST_REASON = 2048
"""Characters of a reason, which may quote what others wrote. It becomes an annotation, and the API server refuses an
object whose annotations have more than 256 KiB together."""


class Skip(Exception):
    """Leave the object as it is. The message says what to do."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(f"{why}: {message}"[:_MOST_REASON])
        self.why = why
        self.message = message


class Deny(Exception):
    """Refuse the object: the pool's conflict policy is Fail."""


def refuse_long(text: str, field: str, fix: str) -> None:
    """Refuse to read a text of others that is too long.

    Args:
        field: what the text is, for people.
        fix: what its owner can do.

    Raises:
        Skip: it has more than ``MOST_TEXT`` characters.
    """
    if len(text) > MOST_TEXT:
        raise Skip(Why.TOO_LONG, f"{field} has {len(text)} characters, and at most {MOST_TEXT} are read: {fix}")


@dataclass(frozen=True)
class Outcome:
    """An object after admission.

    Attributes:
        body: what it shall be; the same object where nothing changes.
        denied: why it must not be created at all.
        warnings: shown to whoever sent it.
    """

    body: dict[str, Any]
    denied: str | None = None
    warnings: tuple[str, ...] = ()
