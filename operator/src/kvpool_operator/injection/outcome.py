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
    HASH = "HashAlgorithm"
    CACHING_OFF = "PrefixCachingOff"
    ALLOCATOR = "ExpandableSegments"
    OWN_CONFIG = "OwnConfiguration"
    TAKEN = "NameTaken"
    NOT_YAML = "NotYAML"
    NO_LLM = "NoLLMConfigs"


class Skip(Exception):
    """Leave the object as it is. The message says what to do."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(f"{why}: {message}")
        self.why = why
        self.message = message


class Deny(Exception):
    """Refuse the object: the pool's conflict policy is Fail."""


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
