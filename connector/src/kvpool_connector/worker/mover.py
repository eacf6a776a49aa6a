"""The data plane of one rank: jobs in, parts moved, outcomes out. No vllm; the device hides torch.

Threads, and what they own:

- vLLM's thread: ``store``, ``load``, ``poll``, ``take_reports``, ``wait``. It queues and polls, and never waits but in ``wait``.
- *copy* lane: the only one that touches KV memory; also seals and checks parts. A copy is short and never abandoned,
  because it reads or writes blocks that vLLM holds for it. Loads go before stores.
- *read* lane: fetches from the remote store into reserved rows. Ends by its deadline whatever the store does.
- *write* lane: see :mod:`kvpool_connector.worker.putter`.

A row belongs to whoever the scheduler gave its slot to; it is given to nobody else before this job (or its put) was
reported. Every job ends exactly once, and always as a success for vLLM, which asserts that; what failed travels in the reports.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from kvpool_connector import format as part_format
from kvpool_connector.format import Verdict
from kvpool_connector.log import get_logger
from kvpool_connector.stores import Outcome, Store
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.transfer import Kind, Reports, Transfer
from kvpool_connector.worker.device.base import Block, Device, Row
from kvpool_connector.worker.lanes import NORMAL, URGENT, Lane
from kvpool_connector.worker.putter import Putter

logger = get_logger(__name__)


@dataclasses.dataclass(slots=True)
class Job:
    """One transfer on its way through the lanes."""

    job_id: int
    transfer: Transfer
    blocks: Sequence[Block]
    fence: object
    started: float
    failed: dict[int, str] = dataclasses.field(default_factory=dict)
    """Position in the transfer's keys, and why."""
    ended: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A finished job, for vLLM's statistics."""

    job_id: int
    nbytes: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
    """The remote store as this rank uses it."""

    reader: Store
    writer: Store
    fetch_s: float
    put_s: float


class Mover:
    """See the module's text."""

    def __init__(
        self, *, device: Device, arena: Arena, identity: str, name: Callable[[bytes], bytes], remote: Remote | None
    ) -> None:
        """Args:
        name: the name of this rank's part of a key, in the remote store and in headers.
        """
        self._device, self._arena, self._identity, self._name, self._remote = device, arena, identity, name, remote
        self._in_flight: set[int] = set()
        self._idle = threading.Condition()  # guards _in_flight
        self._done: queue.SimpleQueue[tuple[Job, Done]] = queue.SimpleQueue()
        self._reports = Reports()  # vLLM's thread only
        self._failed_requests: set[str] = set()  # vLLM's thread only
        self.outcomes: Counter[str] = Counter()
        """What happened to parts, for logs and tests ("load ok", "get timeout", ...). Approximate under threads."""
        self._copy, self._read = Lane("copy"), Lane("read")
        self._putter = Putter(remote.writer, remote.put_s, self.outcomes) if remote is not None else None
        if remote is not None:  # connect now: the first load should not wait for name and handshake
            self._read.run(lambda: self._greet(remote))

    # ---- vLLM's thread -----------------------------------------------------------------------------------

    def store(self, job_id: int, transfer: Transfer, blocks: Sequence[Block]) -> None:
        """KV memory to arena (to remote store). The blocks stay valid until the job is reported."""
        job = self._start(job_id, transfer, blocks)
        self._copy.run(self._guarded(self._store, job), NORMAL)

    def load(self, job_id: int, transfer: Transfer, blocks: Sequence[Block]) -> None:
        """(Remote store to) arena to KV memory. Two stages: the fetch may give up, the copy may not."""
        job = self._start(job_id, transfer, blocks)
        if any(transfer.fetch):
            self._read.run(self._guarded(self._fetch, job))
        else:
            self._copy.run(self._guarded(self._load, job), URGENT)

    def poll(self) -> list[Done]:
        """Jobs that ended since the last call. Their failures become visible in the same call, never before or after:
        separate polls would let a completion pass without its failure."""
        ended: list[Done] = []
        if self._putter is not None:  # before the jobs: the end of a put is never reported ahead of its store
            self._reports.puts.update((ticket, [missing]) for ticket, missing in self._putter.take_ended())
        while not self._done.empty():
            job, done = self._done.get()
            ended.append(done)
            if job.failed:
                self._reports.failed[job.transfer.ticket] = set(job.failed)
                if job.transfer.kind is Kind.LOAD:
                    self._failed_requests.add(job.transfer.req_id)
        return ended

    def take_failed_requests(self) -> set[str]:
        """Requests whose load failed, among the jobs of the polls since the last call."""
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def take_reports(self) -> Reports:
        """What the scheduler must hear about the polls since the last call."""
        reports, self._reports = self._reports, Reports()
        return reports

    def wait(self, job_ids: set[int]) -> None:
        """Block until these jobs left KV memory alone. Bounded: a fetch ends by its deadline, a copy is short."""
        with self._idle:
            self._idle.wait_for(lambda: not (job_ids & self._in_flight))

    @property
    def idle(self) -> bool:
        """No job and no put is running or queued."""
        with self._idle:
            return not self._in_flight and (self._putter is None or self._putter.idle)

    def close(self) -> None:
        """Finish what runs, bounded by the deadlines, and end the threads."""
        longest = (self._remote.fetch_s + self._remote.put_s if self._remote else 0) + 5
        ended = [lane.close(longest) for lane in (self._read, self._copy)]  # as they feed each other
        if self._putter is not None:
            ended.append(self._putter.close(longest))
        if self._remote is not None:
            self._remote.reader.close()
        self._arena.close()
        if all(ended):
            self._device.close()
        else:
            logger.error("a lane did not end in %.0f s; its memory stays registered", longest)

    # ---- jobs --------------------------------------------------------------------------------------------

    def _start(self, job_id: int, transfer: Transfer, blocks: Sequence[Block]) -> Job:
        assert len(blocks) == len(transfer.keys)
        job = Job(job_id, transfer, blocks, self._device.fence(), time.monotonic())
        with self._idle:
            self._in_flight.add(job_id)
        return job

    def _guarded(self, stage: Callable[[Job], None], job: Job) -> Callable[[], None]:
        """An unexpected error fails all keys of the job instead of losing it."""

        def run() -> None:
            try:
                stage(job)
            except Exception as error:
                logger.exception("%s of request %s failed", job.transfer.kind.value, job.transfer.req_id)
                if job.ended:
                    return
                self._finish(job, dict.fromkeys(range(len(job.transfer.keys)), type(error).__name__))
                if job.transfer.put and self._putter is not None:
                    self._putter.give_up(job.transfer.ticket, len(job.transfer.keys))

        return run

    def _finish(self, job: Job, failed: dict[int, str]) -> None:
        transfer, total = job.transfer, len(job.transfer.keys)
        job.failed, job.ended = failed, True
        kind = transfer.kind.value
        nbytes = sum(self._device.payload_bytes[group] for group, _ in job.blocks)
        seconds = time.monotonic() - job.started
        self.outcomes[f"{kind} ok"] += total - len(failed)
        self.outcomes.update(f"{kind} {reason}" for reason in failed.values())
        if transfer.kind is Kind.LOAD:
            fetched = sum(transfer.fetch)
            logger.info(
                "request %s: loaded %d of %d blocks (%d from the remote store), %.1f MB in %.0f ms",
                transfer.req_id, total - len(failed), total, fetched, nbytes / 1e6, seconds * 1e3,
            )  # fmt: skip
        if failed:
            logger.warning("request %s: %s failed for %d of %d blocks, which will be computed: %s",
                           transfer.req_id, kind, len(failed), total, dict(Counter(failed.values())))  # fmt: skip
        self._done.put((job, Done(job.job_id, nbytes, seconds)))
        with self._idle:
            self._in_flight.discard(job.job_id)
            self._idle.notify_all()

    # ---- copy lane ---------------------------------------------------------------------------------------

    def _store(self, job: Job) -> None:
        transfer = job.transfer
        self._device.copy_out(job.blocks, self._payloads(job), job.fence)
        names = [self._name(key) for key in transfer.keys]
        parts = [self._part(job, position) for position in range(len(transfer.keys))]
        for name, part in zip(names, parts, strict=True):
            part_format.seal(part, self._identity, name)
        self._finish(job, {})
        if transfer.put and self._putter is not None:
            self._putter.put(transfer.ticket, names, parts)

    def _load(self, job: Job) -> None:
        """Check every part, then copy the intact ones. Blocks of failed keys are left as they are."""
        transfer, failed = job.transfer, dict(job.failed)
        for position, key in enumerate(transfer.keys):
            if position not in failed:
                verdict = part_format.check(self._part(job, position), self._identity, self._name(key))
                if verdict is not Verdict.INTACT:
                    failed[position] = verdict.value
                    if transfer.fetch[position]:  # else it was damaged here, and says nothing about the store's copy
                        self._remove(key)
        good = [position for position in range(len(transfer.keys)) if position not in failed]
        payloads = self._payloads(job)
        if good:
            self._device.copy_in([payloads[p] for p in good], [job.blocks[p] for p in good], job.fence)
        self._finish(job, failed)

    # ---- read lane ---------------------------------------------------------------------------------------

    @staticmethod
    def _greet(remote: Remote) -> None:
        remote.reader.ping(time.monotonic() + remote.fetch_s)

    def _fetch(self, job: Job) -> None:
        """Fill the reserved rows, then go on to the copy lane with whatever arrived in time."""
        assert self._remote is not None
        transfer = job.transfer
        wanted = [position for position, fetch in enumerate(transfer.fetch) if fetch]
        names = [self._name(transfer.keys[position]) for position in wanted]
        parts = [self._part(job, position) for position in wanted]
        outcomes = self._remote.reader.get_into(names, parts, time.monotonic() + self._remote.fetch_s)
        self.outcomes.update(f"get {outcome.value}" for outcome in outcomes)
        job.failed = {p: o.value for p, o in zip(wanted, outcomes, strict=True) if o is not Outcome.HIT}
        for position, outcome in zip(wanted, outcomes, strict=True):
            if outcome is Outcome.CORRUPT:
                self._remove(transfer.keys[position])
        self._copy.run(self._guarded(self._load, job), URGENT)

    # ---- parts -------------------------------------------------------------------------------------------

    def _remove(self, key: bytes) -> None:
        if self._putter is not None:
            self._putter.remove(self._name(key))

    def _part(self, job: Job, position: int) -> memoryview:
        group, _ = job.blocks[position]
        return self._arena.part(job.transfer.slots[position], self._device.payload_bytes[group]).data

    def _payloads(self, job: Job) -> list[Row]:
        sizes = self._device.payload_bytes
        return [
            self._arena.payload(slot, sizes[group])
            for slot, (group, _) in zip(job.transfer.slots, job.blocks, strict=True)
        ]
