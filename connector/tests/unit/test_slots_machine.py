"""The slot index under any interleaving of its calls, against a model of one record per key."""

from __future__ import annotations

import dataclasses

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvpool_connector.tiers.policy import make_policy
from kvpool_connector.tiers.slots import SlotIndex, State

KEYS = [bytes([number]) for number in range(10)]
keys = st.sampled_from(KEYS)
key_lists = st.lists(keys, unique=True, max_size=5)


@dataclasses.dataclass
class Record:
    """What the model knows of a key."""

    slot: int
    state: State
    used: tuple[int, int]
    """When, and how deep in its chain (negative: the deeper goes first)."""
    refs: int = 0
    held: bool = False
    dirty: bool = False
    bad: bool = False

    @property
    def idle(self) -> bool:
        """May be given up, but for dirt."""
        return self.state is State.READY and not (self.refs or self.held or self.bad)


class IndexMachine(RuleBasedStateMachine):
    """See the module's text."""

    @initialize(slots=st.integers(1, 7), policy=st.sampled_from(["lru", "slru"]))
    def begin(self, slots: int, policy: str) -> None:
        """A small tier."""
        self.slots, self.exact = slots, policy == "lru"
        self.index = SlotIndex(slots, make_policy(policy))
        self.model: dict[bytes, Record] = {}
        self.kept: set[int] = set()
        self.now = 0

    # ---- calls -----------------------------------------------------------------------------------------------

    @rule(key=keys, state=st.sampled_from([State.STORING, State.READY, State.RESERVED]))
    def add(self, key: bytes, state: State) -> None:
        """Of a new key. A reservation is promised at once."""
        if key in self.model:
            return
        self.index.end_step()  # the owner may have cleaned slots
        self._step_ended()
        evicted: list[tuple[bytes, int]] = []
        order = self._order(dirty=False)
        clean_order = [slot for slot in self.index.coldest(self.slots) if not self.index.dirty[slot]]
        free = self.index.free
        slot = self.index.add(key, state, evicted)
        if free:
            assert slot is not None
            assert not evicted
        elif order:
            assert slot == clean_order[0]
            assert evicted == [(self.index_key(slot), slot)]
            del self.model[evicted[0][0]]
        else:
            assert slot is None
            return
        self.now += 1
        self.model[key] = Record(slot, state, (self.now, 0))
        if state is State.RESERVED:
            self.hold(key)

    def index_key(self, slot: int) -> bytes:
        """The model's owner of a slot."""
        return next(key for key, record in self.model.items() if record.slot == slot)

    @rule(key=keys)
    def hold(self, key: bytes) -> None:
        """A hit."""
        if key in self.model:
            self.index.hold(self.model[key].slot)
            self.model[key].held = True

    @rule()
    def end_step(self) -> None:
        """Promises lapse."""
        self.index.end_step()
        self._step_ended()

    @rule(chosen=key_lists)
    def pin(self, chosen: list[bytes]) -> None:
        """A transfer begins. It fills what is reserved."""
        chosen = [key for key in chosen if key in self.model]
        for key in chosen:
            if self.model[key].state is State.RESERVED:
                self.index.set_state(self.model[key].slot, State.FETCHING)
                self.model[key].state = State.FETCHING
            self.model[key].refs += 1
        self.index.pin([self.model[key].slot for key in chosen])

    @rule(chosen=key_lists, ready=st.booleans())
    def release(self, chosen: list[bytes], ready: bool) -> None:
        """A transfer ends."""
        chosen = [key for key in chosen if key in self.model and self.model[key].refs]
        self.index.release([self.model[key].slot for key in chosen], State.READY if ready else None)
        for key in chosen:
            record = self.model[key]
            record.refs -= 1
            record.state = State.READY if ready else record.state
            self._drop_if_done(key)

    @rule(key=keys)
    def condemn(self, key: bytes) -> None:
        """A rank failed."""
        if key in self.model:
            self.index.condemn(self.model[key].slot)
            self.model[key].bad = True
            self._drop_if_done(key)

    @rule(key=keys)
    def drop(self, key: bytes) -> None:
        """The owner has no more use for it."""
        if key in self.model and not self.model[key].refs and not self.model[key].held:
            self.index.drop(self.model[key].slot)
            del self.model[key]

    @rule(key=keys, dirty=st.booleans())
    def mark(self, key: bytes, dirty: bool) -> None:
        """To be written down, or written."""
        if key in self.model:
            self.index.dirty[self.model[key].slot] = dirty
            self.model[key].dirty = dirty

    @rule(chosen=key_lists, again=st.booleans())
    def touch(self, chosen: list[bytes], again: bool) -> None:
        """As a whole chain: the depth counts from the first, wherever that was before."""
        chosen = [key for key in chosen if key in self.model]
        self.index.touch([self.model[key].slot for key in chosen], new_request=not again)
        if not chosen:
            return
        self.now += 1
        depth = self.model[chosen[0]].used[1]
        for place, key in enumerate(chosen):
            self.model[key].used = (self.now, depth - place)

    @rule(chosen=key_lists, before=keys)
    def extend(self, chosen: list[bytes], before: bytes) -> None:
        """A part that goes on from a slot: used no later than that one, and deeper."""
        chosen = [key for key in chosen if key in self.model and key != before]
        if before not in self.model or not chosen:
            return
        self.index.touch([self.model[key].slot for key in chosen], after=self.model[before].slot)
        self.now += 1
        used, depth = self.model[before].used
        for place, key in enumerate(chosen):
            self.model[key].used = (used, depth - 1 - place)

    @rule(keep=key_lists)
    def clear(self, keep: list[bytes]) -> None:
        """A reset, in which some slots are still read."""
        kept = {self.model[key].slot for key in keep if key in self.model}
        self.index.give_back(self.kept)
        self.index.clear(keep=kept)
        self.kept = kept
        self.model.clear()

    @rule()
    def give_back(self) -> None:
        """Nobody reads them any more."""
        self.index.give_back(self.kept)
        self.kept = set()

    @rule(key=keys, slot=st.integers(0, 6))
    def restore(self, key: bytes, slot: int) -> None:
        """Only into a free slot, only for a new key."""
        if slot < self.slots:
            taken = slot in self.kept or slot in {record.slot for record in self.model.values()}
            assert self.index.restore(key, slot) == (key not in self.model and not taken)
            if key not in self.model and not taken:
                self.now += 1
                self.model[key] = Record(slot, State.READY, (self.now, 0))

    # ---- the model -------------------------------------------------------------------------------------------

    def _step_ended(self) -> None:
        for key, record in list(self.model.items()):
            held, record.held = record.held, False
            if held and record.state is State.RESERVED and not record.refs:
                del self.model[key]
            elif held:
                self._drop_if_done(key)

    def _drop_if_done(self, key: bytes) -> None:
        record = self.model[key]
        if record.bad and not record.refs and not record.held:
            del self.model[key]

    def _order(self, *, dirty: bool) -> list[int]:
        idle = [record for record in self.model.values() if record.idle and (dirty or not record.dirty)]
        return [record.slot for record in sorted(idle, key=lambda record: record.used)]

    @invariant()
    def the_same(self) -> None:
        """Every slot has one owner; what is owned, kept and free are all slots; each slot is what the model says."""
        if not hasattr(self, "model"):
            return
        index = self.index
        assert dict(index) == {key: record.slot for key, record in self.model.items()}
        assert len(set(dict(index).values()) | self.kept) == len(index) + len(self.kept)
        assert index.free + len(index) + len(self.kept) == self.slots
        for key, record in self.model.items():
            assert index.find(key) == record.slot
            assert index.key(record.slot) == key
            assert index.state[record.slot] == record.state
            assert index.usable(record.slot) == (record.state is State.READY and not record.bad)
            assert index.evictable(record.slot) == (record.idle and not record.dirty)
        for key in KEYS:
            assert (key in index) == (key in self.model)

    @invariant()
    def in_order(self) -> None:
        """What is coldest is what the model would give up; for LRU in its very order (ties are free)."""
        if not hasattr(self, "model"):
            return
        coldest = self.index.coldest(self.slots)
        expected = self._order(dirty=True)
        assert set(coldest) == set(expected)
        if self.exact:
            used = {record.slot: record.used for record in self.model.values()}
            assert [used[slot] for slot in coldest] == [used[slot] for slot in expected]


IndexMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,  # 10 000 calls
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
TestIndex = IndexMachine.TestCase
