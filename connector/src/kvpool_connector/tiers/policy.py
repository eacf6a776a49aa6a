"""Which blocks go first when room is needed: scores over arrays, nothing else. Pure: no clock, no state.

The index keeps per slot when it was last used, how many requests used it and how deep it lies in its chain; a policy turns these
into one number per slot, and the lowest are evicted. A block whose predecessor is gone can never be hit, so the tail of a chain
goes before its head: the index breaks ties so, and a policy must not score a block above one that precedes it in its chain
(which is used no earlier, no less often, and is less deep).

Measured on traces by ``python -m bench.policies``; why these two: docs/adr/0004-eviction-policies.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
MAX_USES = 255
"""Uses are counted up to here."""


class Policy(Protocol):
    """Turns what is known of slots into scores."""

    def scores(self, age: Floats, uses: Floats, depth: Floats) -> Floats:
        """Score slots; the lowest are evicted first. Called with a sample of the tier's idle slots.

        Args:
            age: time since the last use, shape (n,), in turnovers: 1.0 is as many uses and new blocks as the tier has slots.
            uses: requests that used the block, shape (n,), at most ``MAX_USES``.
            depth: blocks before it in its chain, shape (n,), as a share of the tier's slots.

        Returns:
            shape (n,), of any unit; differences below 1e-7 are taken as ties and broken by depth.
        """


class Lru:
    """Least recently used first."""

    def scores(self, age: Floats, uses: Floats, depth: Floats) -> Floats:
        """See :class:`Policy`."""
        return -age


class Slru:
    """Segmented LRU over chains: what one request alone used goes first, as long as that is a good part of the tier.

    A scan of one-off prompts so pushes out other one-off prompts, and not what is shared. Within a segment the age counts more
    the deeper a block lies: when prompts come round in a loop that does not fit, the heads of all stay and hit, where LRU
    evicts each block just before it is needed.
    """

    def __init__(self, probation: float = 0.3, depth: float = 100.0) -> None:
        """Defaults are what was measured.

        Args:
            probation: share of the slots that blocks used once may keep; below it all are judged by age alone.
            depth: how much more the age counts per depth: with 100, a block as deep as 1 % of the tier counts as twice as old.
        """
        self._probation, self._depth = probation, depth

    def scores(self, age: Floats, uses: Floats, depth: Floats) -> Floats:
        """See :class:`Policy`."""
        old: Floats = -age * (1 + self._depth * depth)
        once = uses <= 1
        if np.count_nonzero(once) <= self._probation * len(once):
            return old
        return np.where(once, old, old + 1 - old.min())


_POLICIES: dict[str, Callable[[], Policy]] = {"lru": Lru, "slru": Slru}


def make_policy(name: str) -> Policy:
    """The policy of a name in the configuration.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _POLICIES:
        raise ValueError(f"eviction policy {name!r} is not known; one of: {', '.join(_POLICIES)}")
    return _POLICIES[name]()
