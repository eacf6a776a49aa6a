"""What the scheduler's half knows of a tier below memory: what it holds, what is read from it, and
what is written to it. The ranks move the bytes (`kvpool_connector.worker.secondary`).

All methods run on the scheduler's thread and return at once.
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from kvpool_connector.tiers.keymap import Key
from kvpool_connector.transfer import Spill, Ticket, Tier

WritePolicy = Literal["write_through", "write_back", "selective"]
ABSENT, ASKED = -1, -2
"""Answers of `Secondary.find` that are no place: the tier does not have the key; it is not known yet."""


class Secondary(abc.ABC):
    """One tier below memory. What a kind of tier has no use for does nothing here."""

    tier: Tier
    policy: WritePolicy
    slots: int = 0
    """How many keys it can hold; 0 if that is not for this engine to say."""

    @property
    @abc.abstractmethod
    def usable(self) -> bool:
        """Whether reading and writing make sense at present."""

    @property
    def generation(self) -> int:
        """Changes when what the tier held before may be gone. 0: it was never reached, or it never loses anything."""
        return 0

    # ---- reading -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def find(self, key: Key, req_id: str, window: int | None, at_head: bool) -> int:
        """Return the place from which the ranks can read the key, promised until the end of the step, or `ABSENT`, or
        `ASKED`: the request is named by `take_answers` when it is to look again.

        Args:
            window: for a group with a sliding window: so many keys in a row are all that the request needs.
            at_head: nothing of this request's prompt was found before this key.
        """

    def pin(self, places: Sequence[int]) -> None:
        """Keep what is in these places until :meth:`release`: a load reads them."""

    def release(self, places: Iterable[int]) -> None:
        """The load ended."""

    @abc.abstractmethod
    def lose(self, key: Key, place: int, *, late: bool) -> bool:
        """A load that was to read the key there got nothing.

        Args:
            late: it came too late; else it is not the key's part, or is gone.

        Returns:
            whether the tier had told that it holds the key, and does so no more.
        """

    # ---- writing -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def lacks(self, key: Key, slot: int) -> bool:
        """Return whether the tier is not known to hold what is in this row."""

    @abc.abstractmethod
    def begin(self, ticket: Ticket, keys: Sequence[Key], slots: Sequence[int]) -> tuple[Spill | None, list[Key]]:
        """Return what to write, perhaps less than asked or nothing, and the keys that make room."""

    @abc.abstractmethod
    def end(self, spill: Spill, missing: set[int]) -> None:
        """All ranks reported; these positions are not in the tier."""

    def held(self, slots: Sequence[int], generation: int) -> None:
        """The tier was just seen to hold what is in these rows, in that life of it."""

    def used(self, keys: Sequence[Key], slots: Sequence[int]) -> None:
        """These rows, which the tier is known to hold, are used again."""

    def lost(self) -> list[tuple[Key, int]]:
        """Called in every step: return rows of which it turned out that the tier holds them no more."""
        return []

    # ---- steps ---------------------------------------------------------------------------------------------

    def end_step(self) -> None:
        """Promises lapse, and questions go out."""

    def take_answers(self) -> set[str]:
        """Return the requests that were told `ASKED` and are to look again."""
        return set()

    def take_counts(self) -> Counter[str]:
        """Return what happened since the last call, for metrics."""
        return Counter()

    def on_counts(self, counts: Mapping[str, int]) -> None:
        """The ranks counted this since they last reported."""

    # ---- life cycle ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many keys it holds, as far as that is known here."""
        return 0

    def keys(self) -> list[Key]:
        """Return what this engine alone knows to be there, in no order."""
        return []

    @abc.abstractmethod
    def reset(self, running: Sequence[Spill]) -> None:
        """Forget what is known. What the running writes take stays taken until :meth:`give_back`."""

    def give_back(self, spill: Spill) -> None:
        """A write that outlived a :meth:`reset` ended."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the tier's threads."""
