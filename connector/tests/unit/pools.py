"""A pool with its tiers, and ranks that do what they are told, for the tests of the scheduler's decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from connector.tests.unit.fakes import FakePresence
from kvpool_connector.scheduler.admission import Admission
from kvpool_connector.scheduler.events import Events
from kvpool_connector.scheduler.lookups import Lookup
from kvpool_connector.scheduler.pool import Pool
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.scheduler.secondary.base import Secondary, WritePolicy
from kvpool_connector.scheduler.secondary.disk import DiskIndex
from kvpool_connector.scheduler.secondary.remote import RemoteIndex
from kvpool_connector.scheduler.verify import Verification
from kvpool_connector.tiers.journal import Journal
from kvpool_connector.tiers.policy import make_policy
from kvpool_connector.tiers.slots import SlotIndex, State
from kvpool_connector.transfer import Orders, Reports, Spill, Tier, Transfer

IDENTITY = "00112233445566778899aabbccddeeff"
KEYS = [bytes([number]) * 8 + bytes(4) for number in range(40)]
CHUNK_BYTES, CHUNK_TOKENS = 1 << 20, 64
HIT, MISS, RETRY, PENDING = Lookup.HIT, Lookup.MISS, Lookup.RETRY, Lookup.PENDING


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def compute(admission: Admission, clock: Clock, tokens: int, seconds: float) -> None:
    """Run a pass of so many tokens that takes so long; the clock goes on by it."""
    number = admission.pass_launched(tokens, 0)
    clock.now += seconds
    admission.pass_ended(number)


class Busy:
    """The view of an engine in which requests run."""

    def __init__(self, prefill_tokens: int = 0) -> None:
        self._prefill_tokens = prefill_tokens

    def others_run(self) -> bool:
        return True

    def prefill_tokens(self) -> int:
        return self._prefill_tokens


def disk_index(folder: Path, slots: int, policy: WritePolicy = "write_through") -> DiskIndex:
    """Over a real journal."""
    return DiskIndex(SlotIndex(slots, make_policy("lru")), Journal(folder, slots, 4096, IDENTITY), policy)


class Rig:
    """The remote store answers by the next step. Every hit is loaded unless ``measured``."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        slots: int = 4,
        disk_slots: int = 8,
        ranks: int = 1,
        remote: bool = False,
        disk_policy: WritePolicy = "write_through",
        remote_policy: WritePolicy = "write_through",
        measured: bool = False,
        verify_one_in: int | None = None,
        presence: Any = None,
    ) -> None:
        """Args:
        folder: of the disk tier; None: there is none.
        """
        self.clock, self.ranks = Clock(), ranks
        self.presence = presence or FakePresence()
        self.disk = None if folder is None else disk_index(folder, disk_slots, disk_policy)
        self.index = SlotIndex(slots, make_policy("lru"))
        secondaries: list[Secondary] = [] if self.disk is None else [self.disk]
        if remote:
            secondaries.append(RemoteIndex(cast(Presence, self.presence), self.index, remote_policy, self.clock))
        self.admission = Admission(CHUNK_BYTES, CHUNK_TOKENS, enabled=measured, clock=self.clock)
        self.pool = Pool(
            self.index,
            ranks,
            secondaries,
            self.admission,
            Events(enabled=True),
            None if verify_one_in is None else Verification(verify_one_in),
            clock=self.clock,
        )

    # ---- a request -----------------------------------------------------------------------------------------

    def step(self) -> Orders:
        """Ends. What the ranks are asked to do."""
        self.pool.end_step()
        return self.pool.take_orders()

    def lookup(self, key: bytes, req_id: str = "r") -> Lookup:
        """With a step in between, if the store must be asked."""
        answer = self.pool.lookup(key, req_id)
        if answer is RETRY:
            self.pool.end_step()
            answer = self.pool.lookup(key, req_id)
        return answer

    def hits(self, *keys: bytes, req_id: str = "r") -> None:
        """All of them, in one step."""
        if RETRY in [self.pool.lookup(key, req_id) for key in keys]:
            self.pool.end_step()
            assert [self.pool.lookup(key, req_id) for key in keys] == [HIT] * len(keys)

    def load(self, *keys: bytes, req_id: str = "r") -> Transfer:
        """Begun, in the step of its hits."""
        self.hits(*keys, req_id=req_id)
        transfer = self.pool.begin_load(keys, req_id)
        self.pool.end_step()
        return transfer

    def loaded(
        self, *keys: bytes, req_id: str = "r", failed: set[int] | None = None, late: Set[int] = frozenset()
    ) -> Transfer:
        """From beginning to end. ``late``: those of the failed ones that only came too late."""
        transfer = self.load(*keys, req_id=req_id)
        if failed:
            self.pool.on_reports(Reports(failed={transfer.ticket: failed}, lost={transfer.ticket: failed - late}))
        self.pool.end_load(req_id)
        return transfer

    def stored(self, *keys: bytes, req_id: str = "w") -> Transfer:
        """From beginning to end; what it causes below waits for the step's end."""
        transfer = self.pool.begin_store(keys, req_id)
        if transfer.keys:
            self.pool.end_store(transfer.keys)
        return transfer

    # ---- lower tiers ---------------------------------------------------------------------------------------

    def report(self, spill: Spill, missing: set[int] | None = None) -> None:
        """All ranks ended it."""
        self.pool.on_reports(Reports(spilled={spill.ticket: [missing or set() for _ in range(self.ranks)]}))

    def settle(self) -> list[Spill]:
        """Steps until nothing is to be written any more. Returns what was written, in order."""
        written: list[Spill] = []
        while spills := self.step().spills:
            written += spills
            for spill in spills:
                self.report(spill)
        assert not self.pool.busy
        return written

    def only_below(self, *keys: bytes) -> None:
        """Store, write down, and push out of memory."""
        self.stored(*keys)
        self.settle()
        for slot in [slot for key, slot in self.index if key in keys]:
            self.index.drop(slot)
        self.pool.events.take()

    # ---- what is left --------------------------------------------------------------------------------------

    @property
    def references(self) -> int:
        """To slots of memory and disk."""
        return sum(self.index._refs) + (0 if self.disk is None else sum(self.disk._index._refs))

    def changes(self) -> list[tuple[Tier, str, tuple[bytes, ...]]]:
        """Events since the last call."""
        return [(c.tier, "removed" if c.removed else "stored", c.keys) for c in self.pool.events.take()]


Make = Callable[..., Rig]


@contextmanager
def closing(rig: Rig) -> Iterator[Rig]:
    """The rig, until the end of a test, in which it lost nothing."""
    try:
        yield rig
    finally:
        rig.pool.close()
    states = rig.index.state
    owned = {slot for _, slot in rig.index}
    assert owned == {slot for slot, state in enumerate(states) if state != State.FREE}
