"""What the emulated device of one rank saw."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Passed:
    """A forward pass that ended. Times are of the monotonic clock."""

    tokens: int
    requests: int
    launched_at: float
    began_at: float
    ended_at: float
    late_s: float
    """Seconds by which this machine was late: checking and writing took longer than the pass."""


@dataclasses.dataclass(frozen=True)
class Report:
    """One rank's device since the last report that was forgotten."""

    passes: list[Passed]
    checked: int
    """Positions that were read."""
    wrong: int
    """Positions that were not what they had to be when they were read."""
    faults: list[str]
    """Some of these, a line for each."""
    broken: list[str]
    """Work on a stream that raised."""
    batches: int
    """Batches of copies since the engine began."""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Report:
        """Return the report that was sent as plain values."""
        return cls(**(fields | {"passes": [Passed(**each) for each in fields["passes"]]}))

    @property
    def launched_ahead(self) -> int:
        """Return how many passes were launched before the one before them had ended."""
        pairs = zip(self.passes, self.passes[1:], strict=False)
        return sum(later.launched_at < earlier.ended_at for earlier, later in pairs)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Return the rate of the large passes: of more than half as many tokens as the largest.

        Raises:
            ValueError: there was no pass.
        """
        least = max(each.tokens for each in self.passes) / 2
        large = [each for each in self.passes if each.tokens > least]
        return sum(each.tokens for each in large) / sum(each.ended_at - each.began_at for each in large)
