"""KV memory is GPU memory: batched copies on streams of our own, between device pages and the registered arena.

NOT YET RUN ON A GPU. Written against vLLM 0.32 (``vllm/v1/kv_offload/cpu/gpu_worker.py``, ``host_register.py``,
``_custom_ops.swap_blocks_batch``) and torch 2.13. Plans, pointers, order, fences and completion are byte-checked with host
memory in place of device memory; ``docs/compatibility.md`` lists what only a GPU can show.

What is vLLM's: the batched copy operator, the registration, and the order of work: a copy waits for what the compute stream
had queued when the job was submitted. For a store that is the forward pass that wrote the blocks; for a load it is the zeroing
of newly allocated blocks. What is not: vLLM's own transfer handler. It wants host memory as one tensor per layer with the
blocks of a chunk in it; here a part is one row, so that it can be sealed, written and sent as it lies. Nor its Triton
kernel for pieces below 28 KiB: that reads host addresses from the GPU, where an arena that is not wholly pinned would end
the engine instead of being slow.

Rows begin on a page, payloads 64 bytes into it (the header): the copy engines want no more than that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from vllm import _custom_ops as ops
from vllm.v1.kv_offload.cpu.host_register import host_register, host_unregister

from kvpool_connector.config import format_bytes
from kvpool_connector.log import get_logger
from kvpool_connector.stores.caller import Caller
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.worker.device.base import Chunk, Page, Row

logger = get_logger(__name__)

_REGISTER_STEP = 16 << 30  # one registration call pins at most this much; drivers refuse very large ones

_PIN_LEAST_S = 60.0
_PIN_BYTES_PER_S = 0.5e9
"""Pinning may take so long, and a second for so many bytes: kernels make pages at 2 to 20 GB/s."""

Addresses = npt.NDArray[np.int64]


def plan(
    pages: Sequence[Sequence[Page]], chunks: Sequence[Chunk], rows: Sequence[int]
) -> tuple[Addresses, Addresses, Addresses]:
    """Device addresses, host addresses and sizes of all pieces of a batch, each of shape (pieces,).

    Pieces that follow each other on both sides are one: below 28 KiB, drivers move 5-7 GB/s of what they move above (H100,
    vLLM's pull request 42212). vLLM has all layers in one allocation, so that a piece never spans two.

    Args:
        pages: per group, its pages in payload order.
        chunks: the blocks of each part.
        rows: host address of each part's payload.
    """
    lists = [_pieces(group, *_blocks(number, group, chunks, rows)) for number, group in enumerate(pages)]
    device, host, sizes = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    if not len(sizes):
        return device, host, sizes
    apart = (device[:-1] + sizes[:-1] != device[1:]) | (host[:-1] + sizes[:-1] != host[1:])
    starts = np.concatenate(([0], np.flatnonzero(apart) + 1))
    return device[starts], host[starts], np.add.reduceat(sizes, starts)


def _blocks(
    number: int, pages: Sequence[Page], chunks: Sequence[Chunk], rows: Sequence[int]
) -> tuple[Addresses, Addresses]:
    """Of a group's blocks: ids, and where in the rows they begin. Shape (blocks,) each."""
    size = sum(page.size for page in pages)
    mine = [(chunk, row) for chunk, row in zip(chunks, rows, strict=True) if chunk.group == number]
    blocks = np.array([block for chunk, _ in mine for block in chunk.blocks], np.int64)
    starts = np.array([row + chunk.first * size for chunk, row in mine], np.int64)
    counts = np.array([len(chunk.blocks) for chunk, _ in mine], np.int64)
    places = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
    return blocks, np.repeat(starts, counts) + places * size


def _pieces(pages: Sequence[Page], blocks: Addresses, at: Addresses) -> tuple[Addresses, Addresses, Addresses]:
    """A piece for every page of every block, in the order of the rows."""
    address, stride, size = (
        np.array([(page.address, page.stride, page.size) for page in pages], np.int64).reshape(-1, 3).T
    )
    device = address + blocks[:, None] * stride
    host = at[:, None] + np.cumsum(size) - size
    return device.ravel(), host.ravel(), np.broadcast_to(size, host.shape).ravel()


class CudaDevice:
    """One copy stream per direction. At most one thread per direction may copy; the mover has one copy lane for both, so that
    today the two never overlap."""

    def __init__(self, pages: Sequence[Sequence[Page]], device: torch.device) -> None:
        """Args:
        pages: per group, in payload order.
        device: where they are.
        """
        self._pages = pages
        self._device = device
        self.block_bytes: Sequence[int] = [sum(page.size for page in group) for group in pages]
        self._streams = {into: torch.cuda.Stream(device) for into in (True, False)}
        self._registered: list[int] = []
        self._given_up = False

    def adopt(self, arena: Arena) -> None:
        """Pin the arena. Without it copies still work, through the driver's own staging, at a fraction
        of the speed.

        Called while vLLM starts, before the engine takes its first request. Pinning makes the memory's
        pages, so it takes as long as the kernel needs for those; a driver that does not return is given
        up. Should it return later, it lets go of what it pinned, and the arena stays until then.

        Raises:
            TimeoutError: the driver did not return in time.
        """
        limit_s = _PIN_LEAST_S + arena.slots * arena.row_bytes / _PIN_BYTES_PER_S
        caller = Caller("pin")
        call = caller.begin(lambda: self._pin(arena))
        caller.close()
        try:
            call.result(time.monotonic() + limit_s)
        except TimeoutError:
            self._given_up = True
            call.then(self.close)
            raise TimeoutError(
                f"the driver has not pinned {format_bytes(arena.slots * arena.row_bytes)} of host memory "
                f"within {limit_s:.0f} s"
            ) from None

    def _pin(self, arena: Arena) -> None:
        """Register the arena in steps of whole rows, on a thread of its own: a copy that spans two
        registrations is an error."""
        size = arena.slots * arena.row_bytes
        step = max(_REGISTER_STEP // arena.row_bytes, 1) * arena.row_bytes
        with torch.cuda.stream(self._streams[True]):  # makes the stream's device the current one of this thread
            for offset in range(0, size, step):
                if self._given_up:
                    return
                address = arena.address + offset
                if not host_register(address, min(step, size - offset)):
                    logger.warning(
                        "memory tier: %s of %s are not pinned; loads and stores of these run at a fraction of the "
                        "link's speed", format_bytes(size - offset), format_bytes(size),
                    )  # fmt: skip
                    return
                self._registered.append(address)

    def fence(self) -> torch.cuda.Event:
        """An event behind what the compute stream holds now."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy_out(self, chunks: Sequence[Chunk], rows: Sequence[Row], fence: object) -> None:
        """See :class:`Device`."""
        self._copy(chunks, rows, fence, into=False)

    def copy_in(self, rows: Sequence[Row], chunks: Sequence[Chunk], fence: object) -> None:
        """See :class:`Device`."""
        self._copy(chunks, rows, fence, into=True)

    def close(self) -> None:
        """Unpin the arena."""
        for address in self._registered:
            host_unregister(address)
        self._registered.clear()

    def _copy(self, chunks: Sequence[Chunk], rows: Sequence[Row], fence: object, *, into: bool) -> None:
        assert isinstance(fence, torch.cuda.Event)
        addresses = [int(row.ctypes.data) for row in rows]
        device, host, sizes = (torch.from_numpy(part) for part in plan(self._pages, chunks, addresses))
        source, target = (host, device) if into else (device, host)
        stream = self._streams[into]
        with torch.cuda.stream(stream):  # makes the stream's device the current one, too
            stream.wait_event(fence)
            try:
                # Host rows are not written while they are read, so the driver may reorder reads of a load; a store reads
                # memory that the compute stream goes on writing, so its reads must stay behind the fence.
                ops.swap_blocks_batch(source, target, sizes, is_src_access_order_any=into)
            finally:
                # Of a batch that was refused, copies may be on their way: the caller gets neither blocks nor rows back
                # before these ended. The lists above live until here. Waiting releases the interpreter lock.
                stream.synchronize()
