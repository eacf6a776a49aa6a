"""A map from key to slot that never stops the scheduler's thread and wastes no room: many small dicts. One thread.

One dict of half a million keys stops for 38 ms when it is enlarged (measured), and under constant turnover it takes twice the
room that its keys need: the room of deleted entries is used up until the dict is made anew, at three times what is in it. Here
each dict is small, and made anew at its tightest before that happens. Keys are digests: their first byte spreads them evenly.
"""

from __future__ import annotations

from collections.abc import Callable

Key = bytes
"""vLLM's block hash and group index. Not empty."""

_SHARDS = 256


class KeyMap:
    """Key to slot.

    Attributes:
        find: the key's slot, None if it has none. Stays the same function for the life of the map.
    """

    def __init__(self) -> None:
        self._shards: list[dict[Key, int]] = [{} for _ in range(_SHARDS)]
        gets = self._gets = [shard.get for shard in self._shards]
        self._added = [0] * _SHARDS

        def find(key: Key) -> int | None:
            """The key's slot, None if it has none."""
            return gets[key[0]](key)

        self.find: Callable[[Key], int | None] = find

    def add(self, key: Key, slot: int) -> None:
        """Note a new key."""
        number = key[0]
        shard = self._shards[number]
        shard[key] = slot
        self._added[number] += 1
        if self._added[number] > 64 + len(shard) // 4:  # deleted entries keep their room until the dict is made anew
            self._added[number] = 0
            self._shards[number] = shard = dict(shard)
            self._gets[number] = shard.get

    def pop(self, key: Key) -> int:
        """Forget a key."""
        return self._shards[key[0]].pop(key)

    def clear(self) -> None:
        """Forget all keys; ``find`` stays what it is."""
        self._shards[:] = [{} for _ in range(_SHARDS)]
        self._gets[:] = [shard.get for shard in self._shards]
