"""One rank with small KV memory, for the tests of its data plane."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from connector.tests.unit.fakes import FakeStore
from kvpool_connector.format import part_name
from kvpool_connector.tiers.arena import Arena, row_bytes_for
from kvpool_connector.tiers.slab import Slab
from kvpool_connector.transfer import Kind, Orders, Probe, Reports, Spill, Tier, Transfer
from kvpool_connector.worker.device.base import Chunk, Row
from kvpool_connector.worker.device.cpu import CpuDevice
from kvpool_connector.worker.job import Done
from kvpool_connector.worker.mover import Mover
from kvpool_connector.worker.rows import Parts
from kvpool_connector.worker.secondary.disk import Disk
from kvpool_connector.worker.secondary.remote import Remote
from testkit.patience import PATIENCE_S
from testkit.servers import wait_until

IDENTITY = "00112233445566778899aabbccddeeff"
BLOCKS, PER_CHUNK, SLOTS = 16, 2, 12
DISK_LENDS = 3
"""Rows of one read from the slab."""
GROUPS: list[list[tuple[int, int]]] = [[(1000, 1000), (3000, 2960)], [(512, 512)], [(128, 100)]]
"""Per group, its layers: bytes from block to block, and bytes that count."""
PAYLOAD = [PER_CHUNK * sum(size for _, size in group) for group in GROUPS]
PAD = 0x77
MIXED = [Chunk(0, 0, (3, 4)), Chunk(0, 0, (15, 0)), Chunk(1, 0, (3, 2)), Chunk(2, 0, (9, 1)), Chunk(1, 0, (0, 9))]
OTHERS = [Chunk(0, 0, (7, 1)), Chunk(0, 0, (6, 2)), Chunk(1, 0, (8, 12)), Chunk(2, 0, (0, 3)), Chunk(1, 0, (5, 4))]
"""As many of each group, elsewhere."""


def small(*blocks: int) -> Chunk:
    """A chunk of the group with one layer."""
    return Chunk(1, 0, blocks)


def key(number: int, group: int) -> bytes:
    """The group is in it, as in vLLM's keys."""
    return bytes([number] * 8 + [group])


def name(the_key: bytes) -> bytes:
    """Of this rank's part."""
    return part_name(IDENTITY, 0, the_key)


class BrokenDevice(CpuDevice):
    """Copies until told not to."""

    broken = False

    def copy_out(self, chunks: Sequence[Chunk], rows: Sequence[Row], fence: object) -> None:
        if self.broken:
            raise RuntimeError("no copy")
        super().copy_out(chunks, rows, fence)

    def copy_in(self, rows: Sequence[Row], chunks: Sequence[Chunk], fence: object) -> None:
        if self.broken:
            raise RuntimeError("no copy")
        super().copy_in(rows, chunks, fence)


class Rank:
    """Key, slot of the arena and slot of the slab have the same number; tickets are 100 + the job's number."""

    def __init__(
        self, data: dict[bytes, bytes] | None = None, folder: Path | None = None, *, fetch_s: float = 5, put_s: float = 5,
        dtype: str = "", most_lent: int = 0,
    ) -> None:  # fmt: skip
        """Args:
        data: the remote store's; None: there is no remote store.
        folder: the slab's; None: there is no disk tier.
        most_lent: buffers that the reader may lend.
        """
        self.memory = [[np.full((BLOCKS, stride), PAD, np.uint8) for stride, _ in group] for group in GROUPS]
        self.device = BrokenDevice(
            [
                [(view, size) for view, (_, size) in zip(views, group, strict=True)]
                for views, group in zip(self.memory, GROUPS, strict=True)
            ]
        )
        row_bytes = row_bytes_for(max(PAYLOAD))
        disk_lends = 0 if folder is None else DISK_LENDS
        self.arena = Arena(SLOTS + most_lent + disk_lends + 2, row_bytes)
        self.slab = None if folder is None else Slab(folder, 0, SLOTS, row_bytes, IDENTITY)
        self.data = {} if data is None else data
        self.reader, self.writer = FakeStore(self.data), FakeStore(self.data)
        self.mover = Mover(
            device=self.device,
            arena=self.arena,
            parts=Parts(IDENTITY, name, lambda the_key: PAYLOAD[the_key[-1]], dtype),
            disk=None if self.slab is None else Disk(self.slab, disk_lends),
            remote=None if data is None else Remote(self.reader, self.writer, fetch_s, put_s, most_lent),
        )
        if data is not None:
            assert self.reader.greeted.wait(PATIENCE_S)
            assert self.writer.greeted.wait(PATIENCE_S)
        self._source = np.random.default_rng(5)
        self._groups: dict[int, int] = {}
        self._last = 0

    # ---- KV memory -----------------------------------------------------------------------------------------

    def fill(self, chunk: Chunk) -> bytes:
        """New content for a chunk's blocks."""
        for view, block, size in self._pages(chunk):
            view[block, :size] = self._source.integers(0, 256, size, np.uint8)
        return self.content(chunk)

    def content(self, chunk: Chunk) -> bytes:
        """The bytes of a chunk's blocks that count, in the order of a part."""
        return b"".join(view[block, :size].tobytes() for view, block, size in self._pages(chunk))

    def _pages(self, chunk: Chunk) -> Iterator[tuple[Row, int, int]]:
        for block in chunk.blocks:
            for view, (_, size) in zip(self.memory[chunk.group], GROUPS[chunk.group], strict=True):
                yield view, block, size

    def row(self, number: int) -> bytes:
        """All of a slot's row."""
        return bytes(self.arena.row(number))

    def wipe(self, *numbers: int) -> None:
        """Other bytes in rows, as after an eviction."""
        for number in numbers:
            self.arena.row(number)[:] = bytes([0xEE]) * self.arena.row_bytes

    # ---- jobs ----------------------------------------------------------------------------------------------

    def store(self, numbers: Sequence[int], chunks: Sequence[Chunk], compared: Sequence[int] = ()) -> int:
        """``compared`` are positions. Returns the job."""
        job, keys = self._next(numbers, chunks)
        transfer = Transfer(Kind.STORE, 100 + job, "w", keys, tuple(numbers), compared=frozenset(compared))
        self.mover.store(job, transfer, chunks)
        return job

    def load(
        self, numbers: Sequence[int], chunks: Sequence[Chunk], *, disk: Sequence[int] = (), remote: Sequence[int] = (),
        fetch_s: float = 5.0,
    ) -> int:  # fmt: skip
        """``disk`` and ``remote`` are positions of what must be fetched first. Returns the job, whose request is r<job>."""
        job, keys = self._next(numbers, chunks)
        from_disk = tuple((position, numbers[position]) for position in disk)
        transfer = Transfer(
            Kind.LOAD, 100 + job, f"r{job}", keys, tuple(numbers), from_disk, tuple(remote), fetch_s=fetch_s
        )
        self.mover.load(job, transfer, chunks)
        return job

    def spill(self, tier: Tier, *numbers: int) -> int:
        """Returns the ticket."""
        self._last += 1
        keys = tuple(key(number, self._groups[number]) for number in numbers)
        self.mover.order(Orders((Spill(100 + self._last, tier, keys, numbers, numbers),)))
        return 100 + self._last

    def probe(self, tier: Tier, number: int) -> None:
        """Of a part that was stored before."""
        self.mover.order(Orders(probes=(Probe(tier, key(number, self._groups[number]), number),)))

    def _next(self, numbers: Sequence[int], chunks: Sequence[Chunk]) -> tuple[int, tuple[bytes, ...]]:
        self._last += 1
        self._groups |= {number: chunk.group for number, chunk in zip(numbers, chunks, strict=True)}
        return self._last, tuple(key(n, chunk.group) for n, chunk in zip(numbers, chunks, strict=True))

    # ---- what is heard of them -----------------------------------------------------------------------------

    def until(
        self, what: str, there: Callable[[Sequence[Done], Reports], bool]
    ) -> tuple[list[Done], set[str], Reports]:
        """Poll until it is there. Returns jobs, failed requests and reports so far."""
        done: list[Done] = []
        failed: set[str] = set()
        reports = Reports()

        def polled() -> bool:
            nonlocal reports
            done.extend(self.mover.outbox.poll())
            failed.update(self.mover.outbox.take_failed_requests())
            reports = reports.merge(self.mover.outbox.take_reports())
            return there(done, reports)

        wait_until(what, polled)
        return done, failed, reports

    def ended(self, *jobs: int) -> tuple[list[Done], set[str], Reports]:
        """Poll until these jobs were reported."""
        return self.until(f"jobs {jobs} end", lambda done, _: set(jobs) <= {one.job_id for one in done})

    def spilled(self, *tickets: int) -> Mapping[int, list[set[int]]]:
        """Poll until these spills were reported."""
        return self.until(f"spills {tickets} end", lambda _, reports: set(tickets) <= reports.spilled.keys())[2].spilled

    def stored_below(self, tier: Tier, numbers: Sequence[int], chunks: Sequence[Chunk]) -> list[bytes]:
        """Store new content, write it down to a tier and forget the rows. Returns the content."""
        contents = [self.fill(chunk) for chunk in chunks]
        self.ended(self.store(numbers, chunks))
        ticket = self.spill(tier, *numbers)
        assert self.spilled(ticket) == {ticket: [set()]}
        self.wipe(*numbers)
        return contents


@contextmanager
def closing(rank: Rank) -> Iterator[Rank]:
    """The rank, until the end of a test."""
    try:
        yield rank
    finally:
        rank.mover.close()
