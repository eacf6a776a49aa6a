"""What every remote store offers.

Rules for implementations, kept by the contract suite in ``connector/tests/store``:

- Expected faults (lost server, full server, missing key, wrong length, late answer) are outcomes, never exceptions.
- A deadline is an absolute ``time.monotonic()`` value for the whole batch; a call returns by then, give or take one
  blocking call of the operating system.
- Where a server's bytes can be watched, one that sends none for ``stall_ms`` is given up before
  the deadline: STALLED.
- When a call has returned, nothing reads or writes its buffers any more, whatever the outcome, but for those that the store
  says are `lent`.
- On any doubt about where a reply starts or ends, the connection is closed: being off by one reply would give the bytes
  of another key.
- An instance belongs to one thread.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol


class Outcome(enum.Enum):
    """What became of one key."""

    HIT = "hit"  # exists / was read completely / was stored / was deleted
    MISS = "miss"  # the store does not have it
    CORRUPT = "corrupt"  # the store has it, but not with the expected length
    FAILED = "failed"  # refused by the store, or the connection was lost or is not to be trusted
    TIMEOUT = "timeout"  # the deadline passed before this key's reply
    STALLED = "stalled"  # not one byte came for longer than a server that works is silent


@dataclasses.dataclass(frozen=True, slots=True)
class Loan:
    """Buffers of a batch that a call which was given up may still use."""

    positions: range
    """Of the batch; their outcomes are TIMEOUT."""
    then: Callable[[Callable[[], object]], None]
    """Does something when they are free again: at once if they are, else on a thread of the store's."""


class Store(Protocol):
    """One connection to a shared store, used by one thread."""

    @property
    def lent(self) -> Loan | None:
        """What is still in use of the last batch of `get_into` or `put_from`. Stores of our own clients lend nothing."""

    @property
    def generation(self) -> int:
        """How often a connection was made: a change means that the server may have lost its content."""

    @property
    def errors(self) -> Counter[str]:
        """What the server refused, by kind, in the words of metrics. The owner takes and clears it, on the store's thread."""

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """HIT or MISS for each key, or why that could not be found out."""

    def exists_all(self, groups: Sequence[Sequence[bytes]], deadline: float, *, touch: bool = False) -> list[Outcome]:
        """For each group of names: HIT if all of them are there, MISS if one is absent, or why that could not be found out.

        Args:
            touch: tell the store, too, that they are used, where it evicts by use and a question does not count as one.
        """

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Read each value into its buffer. HIT: the buffer was filled by a value of exactly its length.

        After any other outcome the buffer may hold anything.
        """

    def put_from(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Store each buffer under its key, without a copy in this process. The caller keeps the bytes unchanged."""

    def delete(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """Remove keys; HIT where there was one."""

    def ping(self, deadline: float) -> Outcome:
        """HIT if the store answers."""

    def close(self) -> None:
        """Drop the connection. A later call makes a new one."""


def all_there(groups: Sequence[Sequence[bytes]], exists: Callable[[list[bytes]], list[Outcome]]) -> list[Outcome]:
    """`Store.exists_all` of a store that answers about single names, asked in one call."""
    outcomes = iter(exists([name for names in groups for name in names]))
    return [_of_all([next(outcomes) for _ in names]) for names in groups]


def _of_all(outcomes: Sequence[Outcome]) -> Outcome:
    if Outcome.MISS in outcomes:
        return Outcome.MISS
    return next((outcome for outcome in outcomes if outcome is not Outcome.HIT), Outcome.HIT)
