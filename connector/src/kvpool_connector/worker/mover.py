"""The data plane of one rank: jobs in, parts moved, outcomes out. No vllm; the device hides torch.

Threads, and what they own:

- vLLM's thread: ``store``, ``load``, ``order``, ``wait``, and the outbox. It queues and polls, and never waits but in ``wait``.
- *copy* lane: the only one that touches KV memory; also seals and checks parts (`Copier`). Loads go before stores.
- lanes of the lower tiers: see :mod:`kvpool_connector.worker.lower`. A fetch ends by its deadline whatever the tier does.

A load passes through up to three stages: slab to rows, store to rows, rows to KV memory. A row belongs to whoever the
scheduler gave its slot to; it is given to nobody else before this job (or its spill) was reported. Where a store's call that
was given up may still use a row, its slot gets another one, and a spill is reported when the call has returned. Every job ends
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
from kvpool_connector.tiers.slab import Slab
from kvpool_connector.transfer import Kind, Orders, Probe, Spill, Tier, Transfer
from kvpool_connector.worker.copier import Copier
from kvpool_connector.worker.device.base import Chunk, Device
from kvpool_connector.worker.job import Done, Job
from kvpool_connector.worker.lanes import NORMAL, URGENT, Lane
from kvpool_connector.worker.lower import DiskParts, Remote, RemoteParts
from kvpool_connector.worker.outbox import Outbox
from kvpool_connector.worker.rows import Parts, Rows
from kvpool_connector.worker.sampling import sample_of

logger = get_logger(__name__)

CLOSE_S = 5.0
"""For the end of all lanes together."""


class Mover:
    """See the module's text."""

    def __init__(
        self, *, device: Device, arena: Arena, parts: Parts, slab: Slab | None = None, remote: Remote | None = None
    ) -> None:
        """Args:
        arena: more rows than the scheduler has slots, see `Rows`: the spare ones are those that the store may lend.
        """
        self.outbox = Outbox()
        self._device, self._rows = device, Rows(arena, parts, remote.most_lent if remote is not None else 0)
        self._in_flight: set[int] = set()
        self._idle = threading.Condition()  # guards _in_flight
        self._copy = Lane("copy")
        self._copier = Copier(device, self._rows, self.outbox.count)
        self._disk = DiskParts(slab, self.outbox) if slab is not None else None
        self._remote = RemoteParts(remote, self.outbox) if remote is not None else None
        self._longest_s = (remote.fetch_s + remote.put_s if remote is not None else 0.0) + 5.0

    # ---- vLLM's thread -----------------------------------------------------------------------------------

    def store(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> None:
        """KV memory to arena. The blocks stay valid until the job is reported."""
        job = self._start(job_id, transfer, chunks)
        self._copy.run(self._guarded(self._store, job), NORMAL)

    def load(self, job_id: int, transfer: Transfer, chunks: Sequence[Chunk]) -> None:
        """(Lower tiers to) arena to KV memory. Two kinds of stages: a fetch may give up, the copy may not."""
        self._next_stage(self._start(job_id, transfer, chunks), Tier.MEMORY)

    def order(self, orders: Orders) -> None:
        """Spills and probes. Each spill is reported exactly once."""
        for spill in orders.spills:
            self.outbox.spills_running += 1
            self._spill(spill)
        for probe in orders.probes:
            lane = self._lane_of(probe.tier)
            if lane is not None:
                lane.run(lambda probe=probe: self._probe(probe), NORMAL)  # type: ignore[misc]

    def wait(self, job_ids: set[int]) -> None:
        """Block until these jobs left KV memory alone. Bounded: a fetch ends by its deadline, a copy is short."""
        with self._idle:
            self._idle.wait_for(lambda: not (job_ids & self._in_flight))

    @property
    def idle(self) -> bool:
        """No job is running or queued, and every spill was polled."""
        with self._idle:
            return not self._in_flight and not self.outbox.spills_running

    def close(self) -> None:
        """End the threads. What runs is finished, what waits for a lower tier is dropped, and nobody waits longer than
        `CLOSE_S`: a Pod that ends has 30 s in all, and what a tier loses by it is a cached block."""
        until = time.monotonic() + CLOSE_S
        lower = [tier for tier in (self._disk, self._remote) if tier is not None]
        for tier in lower:  # these first: they feed the copy lane
            tier.drop()
        ended = [tier.close(until) for tier in lower]
        ended.append(self._copy.close(max(until - time.monotonic(), 1.0)))
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
            self._in_flight.add(job_id)
        return job

    def _next_stage(self, job: Job, ended: Tier) -> None:
        """What comes after a stage of a load: disk, then the remote store, then the copy."""
        if ended is Tier.MEMORY and job.transfer.from_disk and self._disk is not None:
            self._disk.read_lane.run(self._guarded(self._fetch_from_disk, job), URGENT)
        elif ended is not Tier.REMOTE and job.transfer.from_remote and self._remote is not None:
            self._remote.read_lane.run(self._guarded(self._fetch_from_remote, job), URGENT)
        else:
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
            self._in_flight.discard(job.job_id)
            self._idle.notify_all()

    # ---- copy lane ---------------------------------------------------------------------------------------

    def _store(self, job: Job) -> None:
        self._copier.store(job)
        self._finish(job, {})

    def _load(self, job: Job) -> None:
        damaged = self._copier.load(job)
        for position in damaged.keys() & set(job.transfer.from_remote):
            # A row that was not fetched just now was damaged here, and says nothing about the store's copy.
            self._remove(job.transfer.keys[position])
        self._finish(job, job.failed | damaged)

    # ---- lanes of the lower tiers --------------------------------------------------------------------------

    def _fetch_from_disk(self, job: Job) -> None:
        """Fill reserved rows, then go on with whatever arrived in time."""
        assert self._disk is not None
        positions = [position for position, _ in job.transfer.from_disk]
        rows = [self._rows.row(job.transfer.slots[p]) for p in positions]
        started = time.monotonic()
        slots = [slot for _, slot in job.transfer.from_disk]
        outcomes = self._disk.get(slots, rows, job.started + job.transfer.fetch_s)
        self._fetched(job, Tier.DISK, positions, outcomes, started)

    def _fetch_from_remote(self, job: Job) -> None:
        """Fill reserved rows, then go on with whatever arrived in time."""
        assert self._remote is not None
        transfer = job.transfer
        keys = [transfer.keys[position] for position in transfer.from_remote]
        parts = [self._rows.part(transfer.keys[p], transfer.slots[p]) for p in transfer.from_remote]
        started = time.monotonic()
        outcomes = self._remote.get(self._names(keys), parts, job.started + transfer.fetch_s)
        self._replace_lent([transfer.slots[position] for position in transfer.from_remote])
        for key, outcome in zip(keys, outcomes, strict=True):
            if outcome is Outcome.CORRUPT:
                self._remove(key)
        self._fetched(job, Tier.REMOTE, transfer.from_remote, outcomes, started)

    def _replace_lent(self, slots: Sequence[int]) -> None:
        """After a fetch into these slots: those that it may still fill get other rows, before anybody hears that it ended."""
        assert self._remote is not None
        if (loan := self._remote.lent) is not None:
            loan.then(self._rows.replace([slots[position] for position in loan.positions]))

    def _fetched(
        self, job: Job, tier: Tier, positions: Sequence[int], outcomes: Sequence[Outcome], started: float
    ) -> None:
        job.failed |= {p: o.value for p, o in zip(positions, outcomes, strict=True) if o is not Outcome.HIT}
        keys = [job.transfer.keys[p] for p in positions]
        read_s = time.monotonic() - started
        self._sample(tier, keys, outcomes, read_s, started - job.started, job.transfer.fetch_s)
        self._next_stage(job, tier)

    def _probe(self, probe: Probe) -> None:
        """Time one read, and throw away what it brought."""
        started, spare = time.monotonic(), self._rows.probed
        deadline = started + self._longest_s
        if probe.tier is Tier.DISK and self._disk is not None:
            outcomes = self._disk.get([probe.disk_slot], [self._rows.row(spare)], deadline)
        elif self._remote is not None:
            outcomes = self._remote.get(self._names([probe.key]), [self._rows.part(probe.key, spare)], deadline)
            self._replace_lent([spare])
        else:
            return
        self._sample(probe.tier, [probe.key], outcomes, time.monotonic() - started)

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
        if spill.tier is Tier.DISK and self._disk is not None:
            self._disk.write(spill.ticket, spill.disk_slots, [self._rows.row(slot) for slot in spill.slots])
        elif spill.tier is Tier.REMOTE and self._remote is not None:
            parts = [self._rows.part(key, slot) for key, slot in zip(spill.keys, spill.slots, strict=True)]
            self._remote.write(spill.ticket, self._names(spill.keys), parts)
        else:
            self.outbox.spilled(spill.ticket, set(range(len(spill.keys))))

    def _lane_of(self, tier: Tier) -> Lane | None:
        parts = self._disk if tier is Tier.DISK else self._remote
        return None if parts is None else parts.read_lane

    def _remove(self, key: bytes) -> None:
        if self._remote is not None:
            self._remote.remove(self._rows.parts.name(key))

    def _names(self, keys: Sequence[bytes]) -> list[bytes]:
        return [self._rows.parts.name(key) for key in keys]
