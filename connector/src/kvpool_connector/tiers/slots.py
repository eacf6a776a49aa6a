"""Which key owns which slot, and in what state. Pure bookkeeping: no bytes, no clock, no I/O, one thread.

    (absent) --reserve--> RESERVED --fetch--> FETCHING --finish--> READY --begin_store--> STORING
    (absent) --begin_store--> STORING --finish--> READY --evict--> (absent)

An entry that some rank failed to read or write is *bad*: a miss from then on, gone with its last reference. Slots in
use (references, or promised in this step) are never evicted.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict
from collections.abc import Iterable, Iterator

Key = bytes
"""vLLM's block hash and group index."""


class State(enum.Enum):
    """What a slot holds."""

    RESERVED = "reserved"  # nothing; held for this scheduling step, since the remote store has the bytes
    FETCHING = "fetching"  # a load job fills the slot and copies from it
    STORING = "storing"  # a store job fills the slot
    READY = "ready"  # the bytes


@dataclasses.dataclass(slots=True)
class Entry:
    """One key's slot."""

    slot: int
    state: State
    refs: int = 0
    """Transfers that use the slot: loads, the store, and the put that follows it."""
    held: bool = False
    """Promised to a request in this step."""
    bad: bool = False
    ticket: int = 0
    """The store that fills or filled the slot."""
    remote: int = 0
    """Generation of the remote store that is known to hold the bytes; 0: none."""

    @property
    def evictable(self) -> bool:
        """Nobody uses the slot or was promised it."""
        return self.refs == 0 and not self.held and self.state is State.READY


class SlotIndex:
    """Keys over numbered slots, least recently used first."""

    def __init__(self, slots: int) -> None:
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._free = list(reversed(range(slots)))  # taken from the end
        self._held: list[Key] = []
        self.slots = slots

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[tuple[Key, Entry]]:
        return iter(self._entries.items())

    @property
    def free(self) -> int:
        """Slots that no key owns."""
        return len(self._free)

    def __getitem__(self, key: Key) -> Entry:
        return self._entries[key]

    def get(self, key: Key) -> Entry | None:
        """The key's entry; None if it has none."""
        return self._entries.get(key)

    def touch(self, keys: Iterable[Key]) -> None:
        """Mark as used now. The last key becomes the most recent one.

        Blocks form chains and a block whose predecessor is gone can never be hit, so callers pass chains tail first: then
        the tail is evicted before the head.
        """
        for key in keys:
            if key in self._entries:
                self._entries.move_to_end(key)

    def add(self, key: Key, state: State, evicted: list[Key] | None = None) -> Entry | None:
        """Give a slot to a new key: a free one, or the least recently used one that nobody needs; None if all are in use.

        Args:
            evicted: receives the key that made room, if any.
        """
        slot = self._take(evicted)
        if slot is None:
            return None
        entry = self._entries[key] = Entry(slot, state)
        return entry

    def hold(self, key: Key) -> None:
        """Promise the key's slot until :meth:`end_step`."""
        entry = self._entries[key]
        if not entry.held:
            entry.held = True
            self._held.append(key)

    def end_step(self) -> None:
        """Promises end. A reserved slot that no load picked up is given back."""
        for key in self._held:
            entry = self._entries.get(key)
            if entry is not None:
                entry.held = False
                if entry.state is State.RESERVED:
                    self._drop(key)
        self._held.clear()

    def release(self, key: Key, now: State | None = None) -> None:
        """Give one reference back, and name the new state if it changes. A bad entry goes with its last reference."""
        entry = self._entries[key]
        assert entry.refs > 0
        entry.refs -= 1
        if now is not None:
            entry.state = now
        if entry.bad and entry.refs == 0:
            self._drop(key)

    def clear(self, keep: Iterable[int] = ()) -> None:
        """Forget every key. Slots in ``keep`` stay taken until :meth:`give_back`: someone still reads them."""
        kept = set(keep)
        self._entries.clear()
        self._held.clear()
        self._free = [slot for slot in reversed(range(self.slots)) if slot not in kept]

    def give_back(self, slots: Iterable[int]) -> None:
        """Slots that were kept over a :meth:`clear` are free now."""
        self._free.extend(slots)

    def _take(self, evicted: list[Key] | None) -> int | None:
        if self._free:
            return self._free.pop()
        victim = next((key for key, entry in self._entries.items() if entry.evictable), None)
        if victim is None:
            return None
        if evicted is not None:
            evicted.append(victim)
        return self._entries.pop(victim).slot

    def _drop(self, key: Key) -> None:
        self._free.append(self._entries.pop(key).slot)
