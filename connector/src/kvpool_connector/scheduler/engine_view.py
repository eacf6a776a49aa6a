"""What the scheduler's half wants to know of the engine around it, as an interface that vLLM's side implements."""

from __future__ import annotations

from typing import Protocol


class EngineView(Protocol):
    """The engine as it is in this scheduling step. Asked on the scheduler's thread."""

    def others_run(self) -> bool:
        """Return whether a step of running requests passes before a waiting request is asked about again."""
        ...

    def prefill_tokens(self) -> int:
        """Return how many prompt tokens of running requests are not computed yet: they come before a new request's."""
        ...


class IdleEngine:
    """The view of an engine in which nothing runs, for a pool that no engine has asked yet."""

    def others_run(self) -> bool:
        """Return False."""
        return False

    def prefill_tokens(self) -> int:
        """Return 0."""
        return 0
