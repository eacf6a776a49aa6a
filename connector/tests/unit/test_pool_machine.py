"""The pool under everything that can happen, in any order that vLLM can produce.

The machine plays vLLM's scheduler, two ranks, the remote store and the clock, and keeps a model of its own: what lies in each
slot of memory and disk, who reads or writes it, what each tier was announced to hold. The disk index and its journal are real.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from connector.tests.unit.fakes import FakePresence
from connector.tests.unit.pools import CHUNK_BYTES, CHUNK_TOKENS, HIT, PENDING, RETRY, Clock, compute, disk_index
from kvpool_connector.scheduler.admission import Admission
from kvpool_connector.scheduler.events import Events
from kvpool_connector.scheduler.lookups import MAX_FAILED_LOADS
from kvpool_connector.scheduler.pool import Pool
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.scheduler.secondary.base import WritePolicy
from kvpool_connector.scheduler.secondary.remote import RemoteIndex
from kvpool_connector.scheduler.verify import Verification
from kvpool_connector.tiers.policy import make_policy
from kvpool_connector.tiers.slots import SlotIndex, State
from kvpool_connector.transfer import Kind, Reports, Sample, Spill, Tier, Transfer

SLOTS, DISK_SLOTS, RANKS = 8, 6, 2
CHAINS = [[bytes([chain, block, 0, 0, 0, 0]) for block in range(5)] for chain in range(3)]
FAILED: list[set[int]] = [set(), set(), set(), set(), {0}, {1}, {0, 2}, {4}]
"""Of a job's keys, what a rank could not do."""
ACTIONS = (
    ["schedule"] * 50 + ["output"] * 30 + ["store"] * 30 + ["step"] * 10
    + ["finish request"] * 8 + ["others put"] * 4 + ["measure"] * 2 + ["store lost or back"] * 3 + ["reset", "restart"]
)  # fmt: skip
"""As often as they stand here, or no state would ever grow. Chosen by a generator that hypothesis seeds: its own choices are
too alike, and it turns rules off, so that most runs would lack half of what must meet."""
POLICIES: list[WritePolicy] = ["write_through", "write_back", "selective"]
Content = dict[int, bytes | None]
"""What is in a slot; None or absent: nothing whole."""


@dataclasses.dataclass
class Job:
    """A transfer or a spill as the ranks see it."""

    work: Transfer | Spill
    request: int = -1
    old: bool = False
    """From before a reset."""
    running: set[int] = dataclasses.field(default_factory=lambda: set(range(RANKS)))
    """Ranks that have not ended it."""
    failed: set[int] = dataclasses.field(default_factory=set)
    counted: bool = False


class PoolMachine(RuleBasedStateMachine):
    """See the module's text."""

    # ---- begin and end ---------------------------------------------------------------------------------------

    @initialize(source=st.randoms(use_true_random=True))
    def begin(self, source: Random) -> None:
        """A pool of any policies."""
        self.policies = source.choice(POLICIES), source.choice(POLICIES)
        self.measured, self.verify = source.random() < 0.3, source.choice([None, None, 2])
        self.folder = Path(tempfile.mkdtemp(prefix="kvpool-machine-"))
        self.on_disk: Content = {}
        self.requests, self.next_request = [0, 1, 2], 3
        self.start()

    def start(self) -> None:
        """A process: with what the disk tells it."""
        self.presence, self.clock = FakePresence(), Clock()
        self.disk = disk_index(self.folder, DISK_SLOTS, self.policies[0])
        index = SlotIndex(SLOTS, make_policy("lru"))
        self.pool = Pool(
            index,
            RANKS,
            [self.disk, RemoteIndex(cast(Presence, self.presence), index, self.policies[1])],
            Admission(CHUNK_BYTES, CHUNK_TOKENS, enabled=self.measured, clock=self.clock),
            Events(enabled=True),
            None if self.verify is None else Verification(self.verify),
        )
        self.jobs: list[Job] = []
        self.in_memory: Content = {}
        self.failed_loads: Counter[int] = Counter()
        self.announced: dict[Tier, set[bytes]] = {tier: set() for tier in Tier}

    def teardown(self) -> None:
        """Everything ends: nothing is left."""
        if not hasattr(self, "folder"):
            return
        self.step()
        while self.jobs:
            for job in list(self.jobs):
                self.deliver([(job, set())])
            self.step()
        assert (self.pool.jobs._running, self.pool.jobs._load_of, self.pool.jobs._store_of) == ({}, {}, {})
        assert (self.pool.busy, self.pool.spills.pinned, self.pool.lookups.reserved) == (False, 0, {})
        for index in (self.pool.index, self.disk._index):
            assert not any(index._refs)
            assert index.free == index.slots - len(index)
        self.pool.close()
        shutil.rmtree(self.folder)

    # ---- the scheduler ---------------------------------------------------------------------------------------

    @rule(source=st.randoms(use_true_random=True))
    def act(self, source: Random) -> None:
        """Anything."""
        who, flag, first = source.randrange(3), source.random() < 0.5, source.choice([0, 0, 1, 2])
        chain = source.choice(CHAINS)[first : first + source.randint(1, 5)]
        actions: dict[str, Callable[[], None]] = {
            "schedule": lambda: self.schedule(who, chain, taken=flag or who > 0),
            "store": lambda: self.store(who, chain),
            "step": self.step,
            "output": lambda: self.output(source),
            "finish request": lambda: self.finish_request(who),
            "others put": lambda: self.others_put(chain),
            "measure": lambda: self.measure(Tier.DISK if who else Tier.REMOTE, flag),
            "store lost or back": self.store_lost_or_back,
            "reset": self.reset,
            "restart": self.restart,
        }
        actions[source.choice(ACTIONS)]()

    def schedule(self, who: int, chain: list[bytes], taken: bool) -> None:
        """Look a chain up as far as it hits; then load it in the same step or not at all."""
        request = self.requests[who]
        kept = self.must_stay()
        if RETRY in [self.pool.lookup(key, str(request)) for key in chain]:
            self.step()  # the answers come; vLLM looks up again
        hits: list[bytes] = []
        for key in chain:
            answer = self.pool.lookup(key, str(request))
            if answer is PENDING:
                assert any(key in job.work.keys for job in self.live(Kind.LOAD))
            if answer is not HIT:
                break
            assert self.failed_loads[request] < MAX_FAILED_LOADS
            hits.append(key)
        if hits and taken and not any(job.request == request for job in self.live(Kind.LOAD)):
            self.load(request, hits)
        self.check_stayed(kept)

    def load(self, request: int, hits: list[bytes]) -> None:
        """What the ranks will read is what the keys say."""
        transfer = self.pool.begin_load(hits, str(request))
        from_disk = dict(transfer.from_disk)
        assert transfer.keys == tuple(hits)
        for position, (key, slot) in enumerate(zip(transfer.keys, transfer.slots, strict=True)):
            if position in from_disk:
                assert self.on_disk.get(from_disk[position]) == key, "a load would read another key's bytes from disk"
            if position in from_disk or position in transfer.from_remote:
                assert not self.users()[slot], "a slot in use was handed out again"
                self.in_memory[slot] = None
            else:
                assert self.in_memory.get(slot) == key, "a load would read another key's bytes"
        self.jobs.append(Job(transfer, request))

    def store(self, who: int, chain: list[bytes]) -> None:
        """Offer blocks that were computed, at the end of a step."""
        self.pool.end_step()
        kept, resident = self.must_stay(), dict(self.pool.index)
        transfer = self.pool.begin_store(chain, str(self.requests[who]))
        assert list(transfer.keys) == [key for key in chain if key in transfer.keys], "order"
        assert len(set(transfer.slots)) == len(transfer.slots)
        for position, (key, slot) in enumerate(zip(transfer.keys, transfer.slots, strict=True)):
            if position in transfer.compared:
                assert self.verify
                assert (resident[key], self.in_memory[slot]) == (slot, key)
            else:
                assert not self.users()[slot], "a slot in use was handed out again"
                self.in_memory[slot] = None
        if transfer.keys:
            self.jobs.append(Job(transfer, self.requests[who]))
        self.check_stayed(kept)
        self.take_orders()

    def step(self) -> None:
        """Promises lapse, and the ranks get their orders."""
        self.pool.end_step()
        assert State.RESERVED not in self.pool.index.state
        self.take_orders()

    def take_orders(self) -> None:
        """A spill reads what its keys say, and writes where nobody reads or writes."""
        for spill in self.pool.take_orders().spills:
            assert [self.in_memory[slot] for slot in spill.slots] == list(spill.keys)
            assert spill.tier is Tier.DISK or self.presence.reachable
            for slot in spill.disk_slots:
                assert not self.disk_users()[slot], "a slot of the slab in use was handed out again"
                self.on_disk[slot] = None
            self.jobs.append(Job(spill))

    def finish_request(self, who: int) -> None:
        """Done or aborted, in any state. Ids are never used again."""
        self.pool.forget_request(str(self.requests[who]))
        self.failed_loads.pop(self.requests[who], None)
        self.requests[who], self.next_request = self.next_request, self.next_request + 1

    # ---- a worker's output -----------------------------------------------------------------------------------

    def output(self, source: Random) -> None:
        """Some ranks ended some jobs. Reports of all ranks are merged and come before the completions."""
        self.step()
        if self.jobs:
            self.deliver([(source.choice(self.jobs), source.choice(FAILED)) for _ in range(source.randint(1, 12))])

    def deliver(self, ends: list[tuple[Job, set[int]]]) -> None:
        """For each, one rank ended the job, and could not do these positions."""
        reports, completed = Reports(), list[Job]()
        for job, drawn in ends:
            if not job.running:
                continue
            job.running.pop()
            failed = {position for position in drawn if position < len(job.work.keys)}
            job.failed |= failed
            if isinstance(job.work, Spill):
                assert [self.in_memory[slot] for slot in job.work.slots] == list(job.work.keys), "changed under a spill"
                reports = reports.merge(Reports(spilled={job.work.ticket: [failed]}))
            elif failed:
                reports = reports.merge(Reports(failed={job.work.ticket: failed}, lost={job.work.ticket: failed}))
                self.count_failure(job)
            if not job.running:
                completed.append(job)
        self.jobs = [job for job in self.jobs if job.running]
        for job in completed:
            self.note_content(job)
        self.pool.on_reports(reports)
        for job in completed:
            if isinstance(job.work, Transfer) and not job.old:
                if job.work.kind is Kind.LOAD:
                    self.pool.end_load(job.work.req_id)
                else:
                    self.pool.end_store(set(job.work.keys))

    def count_failure(self, job: Job) -> None:
        """Of a load of a living request, once."""
        is_load = isinstance(job.work, Transfer) and job.work.kind is Kind.LOAD
        if is_load and not job.old and not job.counted and job.request in self.requests:
            self.failed_loads[job.request] += 1
            job.counted = True

    def note_content(self, job: Job) -> None:
        """All ranks ended the job: what it left behind."""
        done = [position for position in range(len(job.work.keys)) if position not in job.failed]
        if isinstance(job.work, Spill):
            if job.work.tier is Tier.DISK:
                if job.old:
                    return
                self.on_disk |= {job.work.disk_slots[position]: job.work.keys[position] for position in done}
            elif self.presence.reachable:
                self.presence.remote |= {job.work.keys[position] for position in done}
        elif not job.old:
            for position, disk_slot in job.work.from_disk:
                assert self.on_disk[disk_slot] == job.work.keys[position], "changed under a load"
            fetched = {position for position, _ in job.work.from_disk} | set(job.work.from_remote)
            wrote = set(done) & fetched if job.work.kind is Kind.LOAD else set(done) - job.work.compared
            self.in_memory |= {job.work.slots[position]: job.work.keys[position] for position in wrote}

    # ---- the world -------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Between steps. The ranks end older loads and stores before a slot is used again; spills go on."""
        self.step()
        self.pool.reset()
        for job in self.jobs:
            job.old = True
        assert (len(self.pool.index), len(self.disk)) == (0, 0)

    def restart(self) -> None:
        """The engine ends and starts again; what runs is lost."""
        self.pool.close()
        self.requests = [number + 3 for number in self.requests]
        self.next_request += 3
        self.start()

    def others_put(self, chain: list[bytes]) -> None:
        """Another engine."""
        if self.presence.reachable:
            self.presence.remote.update(chain)
            self.presence.expire()

    def store_lost_or_back(self) -> None:
        """Changes from one to the other."""
        if self.presence.reachable:
            self.presence.lose()
        else:
            self.presence.come_back()

    def measure(self, tier: Tier, fast: bool) -> None:
        """Time passes, a read and a prefill were timed; the store that is slow does not answer."""
        self.step()
        self.presence.hung = tier is Tier.REMOTE and not fast
        self.clock.now += 0.3
        compute(self.pool.admission, self.clock, CHUNK_TOKENS * 64, 64 * 0.01)
        self.pool.on_reports(Reports(samples=[Sample(tier, CHUNK_BYTES, 0.001 if fast else 0.1)]))

    # ---- what must hold --------------------------------------------------------------------------------------

    def live(self, kind: Kind) -> list[Job]:
        """Transfers that vLLM still waits for."""
        return [job for job in self.jobs if isinstance(job.work, Transfer) and job.work.kind is kind and not job.old]

    def users(self) -> Counter[int]:
        """References to slots of memory. Of older jobs only spills count, and once: vLLM waits for the rest."""
        live = Counter(slot for job in self.jobs if not job.old for slot in job.work.slots)
        old = {slot for job in self.jobs if job.old and isinstance(job.work, Spill) for slot in job.work.slots}
        return live + Counter(old)

    def disk_users(self) -> Counter[int]:
        """References to slots of the slab."""
        spills = [slot for job in self.jobs if isinstance(job.work, Spill) for slot in job.work.disk_slots]
        loads = [slot for job in self.live(Kind.LOAD) for _, slot in cast(Transfer, job.work).from_disk]
        return Counter(spills + loads)

    def must_stay(self) -> dict[bytes, int]:
        """Whatever needs room: blocks that only memory holds."""
        index = self.pool.index
        return {key: slot for key, slot in index if index.dirty[slot]}

    def check_stayed(self, kept: dict[bytes, int]) -> None:
        """Those, afterwards."""
        assert {key: self.pool.index.find(key) for key in kept} == kept, "evicted before it was written down"

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        """A key, nobody, or a spill from before a reset; and references are those of the ranks' work."""
        if not hasattr(self, "pool"):
            return
        old = {slot for job in self.jobs if job.old and isinstance(job.work, Spill) for slot in job.work.slots}
        old_disk = {
            slot for job in self.jobs if job.old and isinstance(job.work, Spill) for slot in job.work.disk_slots
        }
        for index, users, kept in (
            (self.pool.index, self.users(), old), (self.disk._index, self.disk_users(), old_disk)
        ):  # fmt: skip
            owned = [slot for _, slot in index]
            assert all(index.find(key) == slot for key, slot in index)
            assert not set(owned) & kept
            assert index.free == index.slots - len(owned) - len(kept)
            assert {slot: refs for slot, refs in enumerate(index._refs) if refs} == users
            assert [slot for slot, state in enumerate(index.state) if state != State.FREE] == sorted(owned)

    @invariant()
    def what_is_ready_is_there(self) -> None:
        """In memory and on disk, also after a restart; and others were told."""
        if not hasattr(self, "pool"):
            return
        for change in self.pool.events.take():
            for key in change.keys:
                assert (key in self.announced[change.tier]) is change.removed or change.tier is Tier.REMOTE, change
            self.announced[change.tier] ^= set(change.keys) if change.tier is not Tier.REMOTE else set()
        for tier, index, content in (
            (Tier.MEMORY, self.pool.index, self.in_memory), (Tier.DISK, self.disk._index, self.on_disk)
        ):  # fmt: skip
            good = {key: slot for key, slot in index if index.usable(slot)}
            assert {key: content[slot] for key, slot in good.items()} == {key: key for key in good}
            assert self.announced[tier] == set(good)

    @invariant()
    def tickets_are_those_of_the_running_work(self) -> None:
        """And the engine goes on stepping exactly while a spill runs or waits."""
        if not hasattr(self, "pool"):
            return
        spills = {job.work.ticket: job.old for job in self.jobs if isinstance(job.work, Spill)}
        transfers = self.live(Kind.LOAD) + self.live(Kind.STORE)
        assert self.pool.jobs._running.keys() == {job.work.ticket for job in transfers}
        assert self.pool.jobs._load_of == {str(job.request): job.work.ticket for job in self.live(Kind.LOAD)}
        assert {ticket: self.pool.spills.is_stale(ticket) for ticket in self.pool.spills._running} == spills
        waiting = any(self.pool.spills._waiting) or bool(self.pool.lookups.probes)
        assert self.pool.busy is (bool(spills) or waiting)
        assert self.pool.lookups.failed_loads == {str(request): n for request, n in self.failed_loads.items() if n}


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=300,
    stateful_step_count=100,
    suppress_health_check=list(HealthCheck),
    phases=[
        Phase.reuse,
        Phase.generate,
    ],  # shrinking takes minutes; add Phase.shrink to find out what a failure is about
)
