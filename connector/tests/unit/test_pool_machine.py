"""The pool under everything that can happen, in any order that vLLM can produce.

The machine plays vLLM's scheduler, two ranks and the remote store, and keeps a model of its own: what lies in each slot, which
activity uses it, how many references a key must have.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from connector.tests.unit.fakes import FakePresence
from kvpool_connector.scheduler.pool import MAX_FAILED_LOADS, Lookup, Pool
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.tiers.slots import State
from kvpool_connector.transfer import Kind, Reports, Transfer

SLOTS, RANKS = 6, 2
CHAINS = [[bytes([chain, block]) for block in range(5)] for chain in range(3)]
KEYS = [key for chain in CHAINS for key in chain]
chains = st.builds(
    lambda chain, begin, end: chain[begin:end], st.sampled_from(CHAINS), st.integers(0, 2), st.integers(1, 5)
)
positions = st.sets(st.integers(0, 4), max_size=2)


@dataclasses.dataclass
class Job:
    """A transfer as the ranks see it."""

    transfer: Transfer
    request: int
    old: bool = False
    """From before a reset: vLLM hears nothing of it any more."""
    moving: set[int] = dataclasses.field(default_factory=lambda: set(range(RANKS)))
    """Ranks whose load or store has not ended."""
    putting: set[int] = dataclasses.field(default_factory=set)
    """Ranks whose put has not ended."""
    failed: set[int] = dataclasses.field(default_factory=set)
    completed: bool = False
    counted: bool = False

    def fails(self, drawn: set[int]) -> set[int]:
        """Positions out of a drawn set."""
        return {position for position in drawn if position < len(self.transfer.keys)}


class PoolMachine(RuleBasedStateMachine):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self.presence = FakePresence()
        self.pool = Pool(SLOTS, RANKS, cast(Presence, self.presence))
        self.jobs: list[Job] = []
        self.content: dict[int, bytes | None] = {}  # of slots, as far as all ranks have it
        self.requests = [0, 1, 2]  # ids of the living requests
        self.next_request = 3
        self.failed_loads: Counter[int] = Counter()
        self.promised: dict[bytes, int] = {}  # hits of this step

    # ---- the scheduler ---------------------------------------------------------------------------------------

    @rule(who=st.integers(0, 2), chain=chains, taken=st.booleans())
    def schedule(self, who: int, chain: list[bytes], taken: bool) -> None:
        """Look a chain up as far as it hits; then load it in the same step or not at all."""
        request = self.requests[who]
        if Lookup.RETRY in [self.pool.lookup(key, str(request)) for key in chain]:
            self.end_step()  # the answers come; vLLM looks up again
        hits: list[bytes] = []
        for key in chain:
            entry = self.pool.index.get(key)
            answer = self.pool.lookup(key, str(request))
            if answer is Lookup.PENDING:
                assert any(key in job.transfer.keys for job in self._live(Kind.LOAD))
            if answer is not Lookup.HIT:
                break
            assert self.failed_loads[request] < MAX_FAILED_LOADS
            assert entry is None or not entry.bad
            assert not any(key in job.transfer.keys for job in self._live(Kind.STORE) if not job.completed)
            hits.append(key)
            self.promised[key] = self.pool.index[key].slot
        loading = any(job.request == request and not job.completed for job in self._live(Kind.LOAD))
        if not hits or not taken or loading:
            return
        transfer = self.pool.begin_load(hits, str(request))
        assert transfer.keys == tuple(hits)
        for key, slot, fetch in zip(transfer.keys, transfer.slots, transfer.fetch, strict=True):
            if fetch:
                assert slot not in self._used_slots()
                self.content[slot] = None
            else:
                assert self.content.get(slot) == key, "a load would read another key's bytes"
        self.jobs.append(Job(transfer, request))

    @rule(who=st.integers(0, 2), chain=chains)
    def store(self, who: int, chain: list[bytes]) -> None:
        """Offer blocks that were computed."""
        resident = {key: entry.slot for key, entry in self.pool.index}
        transfer, evicted = self.pool.begin_store(chain, str(self.requests[who]))
        assert list(transfer.keys) == [key for key in chain if key in transfer.keys], "order"
        assert len(set(transfer.slots)) == len(transfer.slots)
        assert not set(evicted) - resident.keys()
        used = self._used_slots()
        for key, slot in zip(transfer.keys, transfer.slots, strict=True):
            assert slot not in used, "a slot in use was handed out again"
            if key in resident and key not in evicted:
                assert (slot, self.content[slot]) == (resident[key], key), "stored again, but elsewhere"
            self.content[slot] = None
        assert transfer.put is self.presence.reachable
        if transfer.keys:
            putting = set(range(RANKS)) if transfer.put else set()
            self.jobs.append(Job(transfer, self.requests[who], putting=putting))

    @rule()
    def end_step(self) -> None:
        """Promises lapse."""
        self.pool.end_step()
        self.promised.clear()
        assert not any(entry.held or entry.state is State.RESERVED for _, entry in self.pool.index)

    @rule(who=st.integers(0, 2))
    def finish_request(self, who: int) -> None:
        """Done or aborted, with or without a running load. Ids are never used again."""
        self.pool.forget_request(str(self.requests[who]))
        self.failed_loads.pop(self.requests[who], None)
        self.requests[who], self.next_request = self.next_request, self.next_request + 1

    # ---- a worker's output -----------------------------------------------------------------------------------

    @precondition(lambda self: bool(self.jobs))
    @rule(data=st.data(), count=st.integers(1, 6))
    def output(self, data: st.DataObject, count: int) -> None:
        """Some ranks got on with some jobs. Reports of all ranks are merged and come before the completions."""
        self.end_step()
        reports, completed = Reports(), list[Job]()
        for _ in range(count):
            if not self.jobs:
                break
            self._advance(data.draw(st.sampled_from(self.jobs)), data.draw(positions), reports, completed)
        self._deliver(reports, completed)

    def _advance(self, job: Job, drawn: set[int], reports: Reports, completed: list[Job]) -> None:
        """One rank ends its load or store, or its put."""
        failed, ticket = job.fails(drawn), job.transfer.ticket
        ready_to_put = job.putting - job.moving
        if ready_to_put and (not job.moving or len(drawn) % 2):
            job.putting.remove(min(ready_to_put))
            if not job.putting and self.presence.reachable:
                self.presence.remote |= {key for at, key in enumerate(job.transfer.keys) if at not in failed}
            merged = reports.merge(Reports(puts={ticket: [failed]}))
        else:
            job.moving.remove(min(job.moving))
            job.failed |= failed
            merged = reports.merge(Reports(failed={ticket: failed} if failed else {}))
            if not job.moving:
                job.completed = True
                completed.append(job)
        reports.failed, reports.puts = merged.failed, merged.puts
        if job.completed and not job.putting:
            self.jobs.remove(job)

    def _deliver(self, reports: Reports, completed: list[Job]) -> None:
        living = {str(request) for request in self.requests}
        loads = {job.transfer.ticket: job for job in [*self.jobs, *completed] if job.transfer.kind is Kind.LOAD}
        for ticket in reports.failed:
            job = loads.get(ticket)
            if job is not None and not job.old and str(job.request) in living and not job.counted:
                self.failed_loads[job.request] += 1
                job.counted = True
        self.pool.on_reports(reports)
        for job in completed:
            transfer = job.transfer
            if job.old:
                continue
            for position, (key, slot) in enumerate(zip(transfer.keys, transfer.slots, strict=True)):
                if position not in job.failed and (transfer.kind is Kind.STORE or transfer.fetch[position]):
                    self.content[slot] = key
            if transfer.kind is Kind.LOAD:
                self.pool.end_load(set(transfer.keys), transfer.req_id)
            else:
                self.pool.end_store(set(transfer.keys))

    # ---- the world -------------------------------------------------------------------------------------------

    @rule()
    def reset(self) -> None:
        """Between steps. The ranks end older loads and stores before a slot is used again; puts go on."""
        self.end_step()
        self.pool.reset()
        self.content.clear()
        for job in self.jobs:
            job.old = True
        assert len(self.pool.index) == 0

    @rule(chain=chains)
    def others_put(self, chain: list[bytes]) -> None:
        """Another engine."""
        if self.presence.reachable:
            self.presence.remote.update(chain)
            self.presence.expire()

    @rule()
    def store_lost_or_back(self) -> None:
        """Changes from one to the other."""
        if self.presence.reachable:
            self.presence.lose()
        else:
            self.presence.come_back()

    # ---- what must hold --------------------------------------------------------------------------------------

    def _live(self, kind: Kind) -> list[Job]:
        return [job for job in self.jobs if job.transfer.kind is kind and not job.old]

    def _used_slots(self) -> set[int]:
        """Slots that a rank reads or writes. Of older jobs only puts count: vLLM waits for the rest."""
        return {
            slot for job in self.jobs for slot in job.transfer.slots
            if (not job.old and not job.completed) or job.putting
        }  # fmt: skip

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        """An entry, the free list, or a put from before a reset."""
        owned = [entry.slot for _, entry in self.pool.index] + self.pool.index._free
        owned += [slot for slots in self.pool._draining.values() for slot in slots]
        assert sorted(owned) == list(range(SLOTS))

    @invariant()
    def promises_are_kept(self) -> None:
        """Whatever is stored meanwhile: a load may follow until the step ends."""
        assert self.promised == {key: self.pool.index[key].slot for key in self.promised if key in self.pool.index}

    @invariant()
    def references_are_those_of_the_running_transfers(self) -> None:
        """No more, no less; and a bad entry lives from references only."""
        expected: Counter[bytes] = Counter()
        for job in self.jobs:
            if not job.old:
                expected.update(dict.fromkeys(job.transfer.keys, (not job.completed) + bool(job.putting)))
        for key, entry in self.pool.index:
            assert entry.refs == expected[key], key
            assert not entry.bad or entry.refs > 0
            if entry.state is State.READY and not entry.bad:
                assert self.content[entry.slot] == key
        assert not [key for key, count in expected.items() if count and key not in self.pool.index]

    @invariant()
    def tickets_are_those_of_the_running_transfers(self) -> None:
        """And the engine goes on stepping exactly while a put runs."""
        assert self.pool._running.keys() == {job.transfer.ticket for job in self.jobs if not job.old}
        assert self.pool._draining.keys() == {job.transfer.ticket for job in self.jobs if job.old and job.putting}
        assert self.pool._draining.keys() == self.pool._draining_ranks.keys()
        assert self.pool._load_of == {
            job.transfer.req_id: job.transfer.ticket for job in self._live(Kind.LOAD) if not job.completed
        }
        assert self.pool.busy is any(job.putting for job in self.jobs)
        assert self.pool._failed_loads == {str(request): n for request, n in self.failed_loads.items() if n}

    def teardown(self) -> None:
        """Everything ends: nothing is left."""
        self.end_step()
        while self.jobs:
            reports, completed = Reports(), list[Job]()
            self._advance(self.jobs[0], set(), reports, completed)
            self._deliver(reports, completed)
        self.every_slot_has_one_owner()
        assert not self.pool._running
        assert not self.pool._load_of
        assert not self.pool._draining
        assert not self.pool.busy
        assert all(entry.evictable for _, entry in self.pool.index)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=120,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[
        Phase.reuse,
        Phase.generate,
    ],  # shrinking takes minutes; add Phase.shrink to find out what a failure is about
)
