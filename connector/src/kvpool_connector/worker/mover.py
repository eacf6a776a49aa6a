"""The data plane of one rank: jobs in, parts moved, outcomes out. No vllm; the device hides torch.

Threads, and what they own:

- vLLM's thread: ``store``, ``load``, ``order``, ``wait``, and the outbox. It queues and polls, and never waits but in ``wait``.
- *copy* lane: the only one that touches KV memory; also seals and checks parts (`Copier`). Loads go before stores.
- lanes of the tiers below memory: see :class:`Secondary`. A fetch ends by its deadline whatever the tier does.
- *alarms*: a fetch that still waits in a lane at its deadline is given up there, whatever holds the lane up.

A load passes through up to three stages: slab to rows, store to rows, rows to KV memory. A row belongs to whoever the
scheduler gave its slot to; it is given to nobody else before this job (or its spill) was reported. Where a call to a store or
a disk that was given up may still fill a row, its slot gets another one; a spill to a store is reported when its call has
returned. Every job ends
exactly once, and always as a success for vLLM, which asserts that; what failed travels in the reports.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from kvpool_connector.log import get_logger
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.transfer import Kind, Orders, Probe, Spill, Tier, Transfer
from kvpool_connector.worker.alarms import Alarms
from kvpool_connector.worker.copier import Copier
from kvpool_connector.worker.device.base import Chunk, Device
from kvpool_connector.worker.job import Done, Job
from kvpool_connector.worker.lanes import NORMAL, URGENT, Lane
from kvpool_connector.worker.outbox import Outbox
from kvpool_connector.worker.rows import Parts, Rows
from kvpool_connector.worker.sampling import sample_of
from kvpool_connector.worker.secondary.base import Place, Secondary
from kvpool_connector.worker.secondary.disk import Disk, DiskTier
from kvpool_connector.worker.secondary.remote import Remote, RemoteTier

logger = get_logger(__name__)

CLOSE_S = 5.0
"""For the end of all lanes together."""
WAIT_TOLD_S = 10.0
"""A wait for transfers that takes longer is told."""


class Mover:
    """See the module's text."""

    def __init__(
        self, *, device: Device, arena: Arena, parts: Parts, disk: Disk | None = None, remote: Remote | None = None
    ) -> None:
        """Args:
        arena: more rows than the scheduler has slots, see `Rows`: the spare ones are those that disk and store may lend.
        """
        self.outbox = Outbox()
        most_lent = sum(tier.most_lent for tier in (disk, remote) if tier is not None)
        self._device, self._rows = device, Rows(arena, parts, most_lent)
        self._in_flight: dict[int, Job] = {}
        self._idle = threading.Condition()  # guards _in_flight
        self._copy = Lane("copy")
        self._copier = Copier(device, self._rows, self.outbox.count)
        self._alarms = Alarms()
        self._secondary: dict[Tier, Secondary] = {}  # in the order in which a load reads them
        if disk is not None:
            self._secondary[Tier.DISK] = DiskTier(disk, self._rows, self.outbox)
        if remote is not None:
            self._secondary[Tier.REMOTE] = RemoteTier(remote, self._rows, self.outbox)
        self._longest_s = (remote.fetch_s + remote.put_s if remote is not None else 0.0) + 5.0

    # ---- vLLM's thread -----------------------------------------------------------------------------------

    def store(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> None:
        """KV memory to arena. The blocks stay valid until the job is reported."""
        job = self._start(job_id, transfer, chunks)
        self._copy.run(self._guarded(self._store, job), NORMAL)

    def load(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> None:
        """(Lower tiers to) arena to KV memory. Two kinds of stages: a fetch may give up, the copy may not."""
        self._next_stage(self._start(job_id, transfer, chunks), tuple(self._secondary))

    def order(self, orders: Orders) -> None:
        """Spills and probes. Each spill is reported exactly once."""
        for spill in orders.spills:
            self.outbox.spills_running += 1
            self._spill(spill)
        for probe in orders.probes:
            if (tier := self._secondary.get(probe.tier)) is not None:
                tier.read_lane.run(lambda probe=probe: self._probe(probe), NORMAL)  # type: ignore[misc]

    def wait(self, job_ids: set[int]) -> None:
        """Block until these jobs left KV memory and rows alone, since vLLM gives them to others then: at once, and without
        asking. So nothing is abandoned here that could still touch them.

        A store is a copy. A load is waited for after a reset of the cache only, and nobody wants what it brings any more: a
        fetch that has not begun is given up, and one that has begun ends by its deadline, or before it where a disk hangs. Its
        copy is waited for without a bound: it is short, and must not write into blocks that are another request's.
        """
        with self._idle:
            waited_for = [job for job_id, job in self._in_flight.items() if job_id in job_ids]
        for job in waited_for:
            if (tier := job.queued) is not None:
                tiers = tuple(self._secondary)
                self._give_up(job, tiers[tiers.index(tier) :])
        with self._idle:
            while not self._idle.wait_for(lambda: not (job_ids & self._in_flight.keys()), WAIT_TOLD_S):
                logger.warning("vLLM waits for %d transfers, and goes on when they ended", len(waited_for))

    @property
    def idle(self) -> bool:
        """No job is running or queued, and every spill was polled."""
        with self._idle:
            return not self._in_flight and not self.outbox.spills_running

    def close(self) -> None:
        """End the threads. What runs is finished, what waits for a lower tier is dropped, and nobody waits longer than
        `CLOSE_S`: a Pod that ends has 30 s in all, and what a tier loses by it is a cached block."""
        until = time.monotonic() + CLOSE_S
        for tier in self._secondary.values():  # these first: they feed the copy lane
            tier.drop()
        ended = [tier.close(until) for tier in self._secondary.values()]
        ended.append(self._copy.close(max(until - time.monotonic(), 1.0)))
        self._alarms.close()
        self._rows.arena.close()
        if all(ended):
            self._device.close()
        else:
            logger.warning("a lane did not end in %.0f s: it is left behind, and the memory that it uses", CLOSE_S)

    # ---- jobs --------------------------------------------------------------------------------------------

    def _start(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> Job:
        assert len(chunks) == len(transfer.keys), (len(chunks), len(transfer.keys))
        job = Job(job_id, transfer, chunks, self._device.fence(), time.monotonic())
        with self._idle:
            self._in_flight[job_id] = job
        return job

    def _next_stage(self, job: Job, left: Sequence[Tier]) -> None:
        """Begin what comes next in a load: its fetch from the first of the tiers that are left and have
        some of it, or the copy."""
        for number, tier in enumerate(left):
            if job.transfer.fetches(tier):
                self._queue(job, left[number:])
                return
        self._copy.run(self._guarded(self._load, job), URGENT)

    def _queue(self, job: Job, left: Sequence[Tier]) -> None:
        """Let the lane of the first tier fetch, unless it does not come to it by the deadline."""

        def begin(job: Job) -> None:
            if job.claims(left[0]):
                self._fetch(job, left)

        job.queued = left[0]
        self._secondary[left[0]].read_lane.run(self._guarded(begin, job), URGENT)
        self._alarms.at(job.deadline, lambda: self._give_up(job, left))

    def _give_up(self, job: Job, left: Sequence[Tier]) -> None:
        """From any thread: a fetch that has not begun will not, nor one from a tier after it. What arrived before is used."""
        if job.claims(left[0]):
            late = [position for tier in left for position in job.transfer.fetches(tier)]
            job.failed |= dict.fromkeys(late, Outcome.TIMEOUT.value)
            self.outbox.count("fetch not begun in time", len(late))
            self._copy.run(self._guarded(self._load, job), URGENT)

    def _guarded(self, stage: Callable[[Job], None], job: Job) -> Callable[[], None]:
        """An unexpected error fails all keys of the job instead of losing it."""

        def run() -> None:
            try:
                stage(job)
            except Exception as error:
                logger.exception("%s of request %s failed", job.transfer.kind.value, job.transfer.req_id)
                if not job.ended:
                    self._finish(job, dict.fromkeys(range(len(job.transfer.keys)), type(error).__name__))

        return run

    def _finish(self, job: Job, failed: dict[int, str]) -> None:
        transfer, total, kind = job.transfer, len(job.transfer.keys), job.transfer.kind.value
        job.ended = True
        nbytes = sum(self._device.block_bytes[chunk.group] * len(chunk.blocks) for chunk in job.chunks)
        seconds = time.monotonic() - job.started
        self.outbox.count(f"{kind} ok", total - len(failed))
        for reason in failed.values():
            self.outbox.count(f"{kind} {reason}", 1)
        if transfer.kind is Kind.LOAD:
            logger.debug(  # the scheduler's half says it for all ranks
                "request %s: loaded %d of %d chunks (%d from disk, %d from the remote store), %.1f MB in %.0f ms",
                transfer.req_id, total - len(failed), total, len(transfer.from_disk), len(transfer.from_remote),
                nbytes / 1e6, seconds * 1e3,
            )  # fmt: skip
        if failed:
            logger.warning("request %s: %s failed for %d of %d chunks, which will be computed: %s",
                           transfer.req_id, kind, len(failed), total, dict(Counter(failed.values())))  # fmt: skip
        self.outbox.done(Done(job.job_id, nbytes, seconds), transfer, failed, job.differed)
        with self._idle:
            self._in_flight.pop(job.job_id, None)
            self._idle.notify_all()

    # ---- copy lane ---------------------------------------------------------------------------------------

    def _store(self, job: Job) -> None:
        self._copier.store(job)
        self._finish(job, {})

    def _load(self, job: Job) -> None:
        damaged = self._copier.load(job)
        for tier, secondary in self._secondary.items():
            # A row that was not fetched just now was damaged here, and says nothing about the tier's copy.
            for position in damaged.keys() & job.transfer.fetches(tier).keys():
                secondary.remove(job.transfer.keys[position])
        self._finish(job, job.failed | damaged)

    # ---- lanes of the tiers below --------------------------------------------------------------------------

    def _fetch(self, job: Job, left: Sequence[Tier]) -> None:
        """Fill reserved rows from the first tier, then go on with whatever arrived in time."""
        tier, started = left[0], time.monotonic()
        transfer, fetches = job.transfer, job.transfer.fetches(tier)
        places = [Place(transfer.keys[p], transfer.slots[p], place) for p, place in fetches.items()]
        outcomes = self._read(tier, places, job.deadline)
        for place, outcome in zip(places, outcomes, strict=True):
            if outcome is Outcome.CORRUPT:
                self._secondary[tier].remove(place.key)
        job.failed |= {p: o.value for p, o in zip(fetches, outcomes, strict=True) if o is not Outcome.HIT}
        keys = [place.key for place in places]
        read_s = time.monotonic() - started
        self._sample(tier, keys, outcomes, read_s, started - job.started, transfer.fetch_s)
        self._next_stage(job, left[1:])

    def _probe(self, probe: Probe) -> None:
        """Time one read, and throw away what it brought."""
        started = time.monotonic()
        places = [Place(probe.key, self._rows.probed, probe.disk_slot)]
        outcomes = self._read(probe.tier, places, started + self._longest_s)
        self._sample(probe.tier, [probe.key], outcomes, time.monotonic() - started)

    def _read(self, tier: Tier, places: Sequence[Place], deadline: float) -> list[Outcome]:
        """Read. Slots whose row may still be filled afterwards get another one, before anybody hears that
        the read ended."""
        secondary = self._secondary[tier]
        outcomes = secondary.read(places, deadline)
        if (loan := secondary.lent) is not None:
            loan.then(self._rows.replace([places[position].slot for position in loan.positions]))
        return outcomes

    def _sample(
        self,
        tier: Tier,
        keys: Sequence[bytes],
        outcomes: Sequence[Outcome],
        seconds: float,
        waited_s: float = 0.0,
        budget_s: float = 0.0,
    ) -> None:
        sizes = [self._rows.parts.payload_bytes(key) for key in keys]
        sample = sample_of(tier, sizes, outcomes, seconds, waited_s=waited_s, budget_s=budget_s)
        if sample is not None:
            self.outbox.sample(sample)

    def _spill(self, spill: Spill) -> None:
        if (tier := self._secondary.get(spill.tier)) is not None:
            tier.write(spill)
        else:
            self.outbox.spilled(spill.ticket, set(range(len(spill.keys))))
