"""Parts in the arena's rows: what they are called, how large they are, and whether they are intact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from kvpool_connector import format as part_format
from kvpool_connector.format import Verdict
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.worker.device.base import Row


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """What a part is called and how large it is."""

    identity: str
    name: Callable[[bytes], bytes]
    """The name of this rank's part of a key, in the remote store and in headers."""
    payload_bytes: Callable[[bytes], int]
    """Bytes behind the header of a key's part."""
    dtype: str = ""
    """KV memory's type, for comparisons."""


class Rows:
    """Views of the arena. A row belongs to whoever the scheduler gave its slot to; nothing is locked."""

    def __init__(self, arena: Arena, parts: Parts, spare: int = 0) -> None:
        """Args:
        arena: has more rows than the scheduler has slots: one for comparisons, one for probes, and the spare ones.
        spare: rows that no slot has at first, for `replace`.
        """
        self.arena, self.parts = arena, parts
        self.compared, self.probed = arena.slots - 1, arena.slots - 2
        self._spare = list(range(arena.slots - 2 - spare, arena.slots - 2))
        self._moved: dict[int, int] = {}  # slots whose row is not the one of the same number

    def replace(self, slots: Sequence[int]) -> Callable[[], object]:
        """Give slots other rows, since somebody may still write into theirs. Nobody else uses these slots now.

        Returns:
            to be called when their former rows are free. From any thread.
        """
        former = [self._place(slot) for slot in slots]
        for slot in slots:
            self._moved[slot] = self._spare.pop()
        return lambda: self._spare.extend(former)

    def _place(self, slot: int) -> int:
        return self._moved.get(slot, slot)

    def row(self, slot: int) -> memoryview:
        """The whole row, as the slab keeps it."""
        return self.arena.row(self._place(slot))

    def part(self, key: bytes, slot: int) -> memoryview:
        """Header and payload, as the remote store keeps them."""
        return self.arena.part(self._place(slot), self.parts.payload_bytes(key)).data

    def payload(self, key: bytes, slot: int) -> Row:
        """The blocks of the key's chunk, one after the other."""
        return self.arena.payload(self._place(slot), self.parts.payload_bytes(key))

    def seal(self, key: bytes, slot: int) -> None:
        """Write the header of what the row holds now."""
        part_format.seal(self.part(key, slot), self.parts.identity, self.parts.name(key))

    def verdict(self, key: bytes, slot: int) -> Verdict:
        """Whether the row holds this key's part, unharmed."""
        return part_format.check(self.part(key, slot), self.parts.identity, self.parts.name(key))
