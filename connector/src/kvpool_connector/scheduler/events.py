"""What tiers gained and lost, for routers that follow a server's KV events. Collects nothing unless vLLM's events are on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from kvpool_connector.tiers.keymap import Key
from kvpool_connector.transfer import Tier


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Keys that a tier can serve from now on, or no longer."""

    tier: Tier
    keys: tuple[Key, ...]
    removed: bool


class Events:
    """A list of changes, in order. One thread."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._changes: list[Change] = []

    def stored(self, tier: Tier, keys: Iterable[Key]) -> None:
        """The tier holds these now."""
        self._note(tier, keys, removed=False)

    def removed(self, tier: Tier, keys: Iterable[Key]) -> None:
        """The tier does not hold these any more."""
        self._note(tier, keys, removed=True)

    def take(self) -> list[Change]:
        """All changes since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def _note(self, tier: Tier, keys: Iterable[Key], *, removed: bool) -> None:
        if self._enabled and (the_keys := tuple(keys)):
            self._changes.append(Change(tier, the_keys, removed))
