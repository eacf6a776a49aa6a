"""What a type of connector adds to each engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvpool_operator.desired.pool import Manifest


@dataclass(frozen=True)
class EnginePart:
    """Attributes:
    transfer: vLLM's ``kv_transfer_config``; None where the environment switches the connector on.
    environment: variables of the container.
    arguments: further arguments of vLLM.
    """

    transfer: dict[str, Any] | None
    environment: list[Manifest] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
