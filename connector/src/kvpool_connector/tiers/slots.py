"""Which key owns which slot, in what state, and which slot is given up next. Bookkeeping for one tier: no bytes, no clock,
no I/O, one thread.

    (absent) --add--> RESERVED --set_state--> FETCHING --release--> READY --set_state--> STORING
    (absent) --add--> STORING --release--> READY --evicted or dropped--> (absent)

A slot is evicted only when it is READY and idle: no references (transfers that use it), not held (promised to a request in
this scheduling step), not dirty (to be written down first), not condemned. A condemned slot (some rank failed to read or
write it) is a miss from then on, and goes as soon as nobody uses it: at once, with its last reference, or at the end of the
step in which it is held.

Sized for long prompts and large tiers: fewer than 200 bytes per key with the key itself, since everything is an array over
the slots beside a map from key to slot; a few dozen nanoseconds per key in the batch calls.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kvpool_connector.tiers.keymap import Key, KeyMap
from kvpool_connector.tiers.policy import MAX_USES, Policy
from kvpool_connector.tiers.victims import Columns, Victims

Slots = npt.NDArray[np.intp]


class State(enum.IntEnum):
    """What a slot holds."""

    FREE = 0  # nothing, and no key owns it
    RESERVED = 1  # nothing yet; held for this scheduling step, since a lower tier or the remote store has the bytes
    FETCHING = 2  # a load job fills the slot and copies from it
    STORING = 3  # a store job fills the slot
    READY = 4  # the bytes


class SlotIndex:
    """Keys over numbered slots.

    Attributes:
        find: the slot of a key, None if it has none. Fast; says nothing about the slot's state.
        state: a ``State`` per slot.
        good: per slot, 1 if the slot is READY and not condemned; what :meth:`usable` says, for loops over many keys.
        dirty: per slot, nonzero if it must be written down before it may be evicted. Set and cleared by the owner; 0 on add.
        tag: per slot, a note of the owner's (32 bits); 0 on add.
    """

    def __init__(self, slots: int, policy: Policy) -> None:
        self.slots = slots
        self._policy = policy
        # Both a buffer, for single slots, and an array over the same memory, for many: each is fast where the other is slow.
        self.state, self.good, self.dirty = bytearray(slots), bytearray(slots), bytearray(slots)
        self._held_now, self._condemned, self._uses = bytearray(slots), bytearray(slots), bytearray(slots)
        self.tag, self._refs = array("I", bytes(4 * slots)), array("i", bytes(4 * slots))
        self._stamps, self._depths = array("q", bytes(8 * slots)), array("I", bytes(4 * slots))
        self._state_of, self._condemned_of = _bytes(self.state), _bytes(self._condemned)
        self._of = Columns(
            good=_bytes(self.good),
            dirty=_bytes(self.dirty),
            held=_bytes(self._held_now),
            uses=_bytes(self._uses),
            refs=np.frombuffer(self._refs, np.int32),
            stamp=np.frombuffer(self._stamps, np.int64),
            depth=np.frombuffer(self._depths, np.uint32),
        )
        self._map = KeyMap()
        self.find = self._map.find
        self._begin()

    def _begin(self) -> None:
        """No key owns a slot."""
        self._map.clear()
        self._keys: list[Key | None] = [None] * self.slots
        self._owned = 0
        self._kept = 0
        self._held: list[int] = []
        self._free = array("I")
        self._free_known = False
        self._now = 1
        self._victims = Victims(self._of, self._policy)

    # ---- what is there -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._owned

    def __contains__(self, key: Key) -> bool:
        return self.find(key) is not None

    def __iter__(self) -> Iterator[tuple[Key, int]]:
        return ((key, slot) for slot, key in enumerate(self._keys) if key is not None)

    @property
    def free(self) -> int:
        """Slots that no key owns and nobody reads."""
        return self.slots - self._owned - self._kept

    def key(self, slot: int) -> Key:
        """The owner of a slot."""
        key = self._keys[slot]
        assert key is not None
        return key

    def usable(self, slot: int) -> bool:
        """The bytes are there, and not condemned."""
        return self.good[slot] != 0

    def evictable(self, slot: int) -> bool:
        """The slot could be given to another key."""
        in_use = self._refs[slot] or self._held_now[slot] or self.dirty[slot]
        return bool(self.good[slot]) and not in_use

    def coldest(self, count: int) -> list[int]:
        """Up to ``count`` idle READY slots in the order in which they will be evicted, dirty ones included."""
        return self._victims.coldest(count, self._now)

    # ---- keys come and go --------------------------------------------------------------------------------

    def add(self, key: Key, state: State, evicted: list[tuple[Key, int]] | None = None) -> int | None:
        """Give a slot to a new key: a free one, or the coldest that nobody needs; None if all are in use.

        Slots that the owner cleaned in this step count as clean from its end on, if there was none to evict before.

        Args:
            evicted: receives the key that made room and the slot, if any.
        """
        slot = self._take_free()
        if slot is None:
            slot = self._victims.next(self._now)
            if slot is None:
                return None
            victim = self.key(slot)
            self._forget(slot)
            if evicted is not None:
                evicted.append((victim, slot))
        self._own(key, slot, state)
        return slot

    def restore(self, key: Key, slot: int) -> bool:
        """At start: the key is in this slot, READY. Callers pass the oldest first. False if the slot or the key is taken."""
        if self.state[slot] != State.FREE or self._refs[slot] or key in self:
            return False
        self._own(key, slot, State.READY)
        self._free_known = False
        return True

    def drop(self, slot: int) -> None:
        """Forget the key of an idle slot now."""
        assert not self._refs[slot] and not self._held_now[slot]
        self._forget(slot)
        self._free.append(slot)

    def clear(self, keep: Iterable[int] = ()) -> None:
        """Forget every key. Slots in ``keep`` stay taken until :meth:`give_back`: someone still reads them."""
        for values in (self._state_of, self._of.good, self._of.dirty, self._of.held, self._condemned_of, self._of.refs):
            values[:] = 0
        self._begin()
        kept = set(keep)
        for slot in kept:
            self._refs[slot] = 1
        self._kept = len(kept)

    def give_back(self, slots: Iterable[int]) -> None:
        """Slots that were kept over a :meth:`clear` are free now."""
        for slot in slots:
            assert self.state[slot] == State.FREE and self._refs[slot] == 1
            self._refs[slot] = 0
            self._kept -= 1
            self._free.append(slot)

    def _own(self, key: Key, slot: int, state: State) -> None:
        self._map.add(key, slot)
        self._keys[slot] = key
        self._owned += 1
        self._now += 1
        self.state[slot], self.good[slot], self.dirty[slot], self.tag[slot] = state, state == State.READY, 0, 0
        self._stamps[slot], self._depths[slot], self._uses[slot] = self._now, 0, 0

    def _forget(self, slot: int) -> None:
        self._map.pop(self.key(slot))
        self._keys[slot] = None
        self._owned -= 1
        self.state[slot] = self.good[slot] = self.dirty[slot] = self._condemned[slot] = 0

    def _take_free(self) -> int | None:
        if not self._free_known:
            taken = np.flatnonzero((self._state_of == State.FREE) & (self._of.refs == 0))
            self._free = array("I", taken[::-1].astype(np.uint32).tobytes())  # taken from the end
            self._free_known = True
        return self._free.pop() if self._free else None

    # ---- use ---------------------------------------------------------------------------------------------

    def pin(self, slots: Iterable[int]) -> None:
        """A transfer uses the slots. A slot comes once per call."""
        self._of.refs[_array(slots)] += 1

    def release(self, slots: Iterable[int], now: State | None = None) -> None:
        """Give references back, and name the new state if it changes. A condemned slot goes with its last reference.

        A slot comes once per call.
        """
        numbers = _array(slots)
        left = self._of.refs[numbers] - 1
        assert not len(left) or left.min() >= 0
        self._of.refs[numbers] = left
        if now is not None:
            self._state_of[numbers] = now
            self._of.good[numbers] = (self._condemned_of[numbers] == 0) & (now == State.READY)
        self._victims.changed()
        for slot in numbers[(left == 0) & (self._condemned_of[numbers] != 0)].tolist():
            self._drop_unused(slot)

    def set_state(self, slot: int, state: State) -> None:
        """The slot holds something else from now on."""
        self.state[slot] = state
        self.good[slot] = state == State.READY and not self._condemned[slot]
        self._victims.changed()

    def condemn(self, slot: int) -> None:
        """The bytes are bad: a miss from now on. The key goes at once if nobody uses the slot, else with its last use."""
        self._condemned[slot], self.good[slot] = 1, 0
        self._drop_unused(slot)

    def hold(self, slot: int) -> None:
        """Promise the slot until :meth:`end_step`."""
        if not self._held_now[slot]:
            self._held_now[slot] = 1
            self._held.append(slot)

    def end_step(self) -> None:
        """Promises end. A reserved slot that no load picked up is given back."""
        self._victims.changed()  # also since the owner may have cleaned slots
        if not self._held:
            return
        held = _array(self._held)
        self._held.clear()
        self._of.held[held] = 0
        for slot in held[(self._state_of[held] == State.RESERVED) | (self._condemned_of[held] != 0)].tolist():
            self._drop_unused(slot)

    def _drop_unused(self, slot: int) -> None:
        if not self._refs[slot] and not self._held_now[slot]:
            self.drop(slot)

    def touch(self, chain: Sequence[int], after: int | None = None, new_request: bool = True) -> None:
        """Slots of one request's chain, in the order of the prefix, are used now: their tail will go before their head.

        Fastest with an ``array("I")``.

        Args:
            after: the slot before ``chain[0]``, if the chain goes on from an earlier part. The new part then counts as used
                no later than that slot. Without it, a part is newer than what precedes it, until the whole chain is touched.
            new_request: count one more use. False if the same request has touched these blocks before.
        """
        if not len(chain):
            return
        numbers = _array(chain)
        self._now += 1
        depth = self._depths[chain[0]] if after is None else self._depths[after] + 1
        self._of.depth[numbers] = np.arange(depth, depth + len(numbers), dtype=np.uint32)
        self._of.stamp[numbers] = self._now if after is None else self._stamps[after]
        uses = self._of.uses[numbers]
        if new_request:
            uses += uses < MAX_USES
        # Who used a block used what is before it: counts do not rise along a chain.
        falling = np.maximum.accumulate(uses[::-1])[::-1]
        self._of.uses[numbers] = falling if after is None else np.minimum(uses, self._uses[after])


def _bytes(buffer: bytearray) -> npt.NDArray[np.uint8]:
    return np.frombuffer(buffer, np.uint8)


def _array(slots: Iterable[int]) -> Slots:
    """Slot numbers to index with; an ``array("I")`` is the cheapest to pass."""
    if not isinstance(slots, array):
        slots = array("I", slots)
    return np.frombuffer(slots, np.uint32).astype(np.intp)
