"""KV memory is GPU memory: batched copies on streams of our own, between device pages and the registered arena.

NOT YET RUN ON A GPU. Written against the sources of vLLM 0.32 (``vllm/v1/kv_offload/cpu/gpu_worker.py``,
``host_register.py``, ``_custom_ops.swap_blocks_batch``) and torch 2.13; the copy plan (`plan`) is tested on host memory.
What only a GPU can show: stream ordering against vLLM's compute stream, registration of the arena, bandwidth.

Order of work, as in vLLM's own worker: a copy waits for what the compute stream had queued when the job was submitted. For a
store that is the forward pass that wrote the blocks; for a load it is the zeroing of newly allocated blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from vllm import _custom_ops as ops
from vllm.v1.kv_offload.cpu.host_register import host_register, host_unregister

from kvpool_connector.log import get_logger
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.worker.device.base import Block, Page, Row

logger = get_logger(__name__)

_REGISTER_STEP = 16 << 30  # one registration call pins this much; drivers refuse very large ones


def plan(
    pages: Sequence[Sequence[Page]], blocks: Sequence[Block], rows: Sequence[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Device addresses, host addresses and sizes of all pieces of a batch, each of shape (pieces,).

    Args:
        pages: per group, its pages in payload order.
        blocks: group and block id of each part.
        rows: host address of each part's payload.
    """
    device: list[int] = []
    host: list[int] = []
    sizes: list[int] = []
    for (group, block), row in zip(blocks, rows, strict=True):
        at = row
        for page in pages[group]:
            device.append(page.address + block * page.stride)
            host.append(at)
            sizes.append(page.size)
            at += page.size
    return np.array(device, np.int64), np.array(host, np.int64), np.array(sizes, np.int64)


class CudaDevice:
    """One copy stream per direction, so that a long store does not hold up a load."""

    def __init__(self, pages: Sequence[Sequence[Page]], device: torch.device) -> None:
        self._pages = pages
        self._device = device
        self.payload_bytes: Sequence[int] = [sum(page.size for page in group) for group in pages]
        self._streams = {into: torch.cuda.Stream(device) for into in (True, False)}
        self._registered: list[int] = []

    def adopt(self, arena: Arena) -> None:
        """Pin the arena. Without it copies still work, through the driver's own staging, at a fraction of the speed."""
        size = arena.slots * arena.row_bytes
        for offset in range(0, size, _REGISTER_STEP):
            address = arena.address + offset
            if not host_register(address, min(_REGISTER_STEP, size - offset)):
                logger.warning("memory tier: not pinned; loads and stores run at a fraction of the link's speed")
                return
            self._registered.append(address)

    def fence(self) -> torch.cuda.Event:
        """An event behind what the compute stream holds now."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy_out(self, blocks: Sequence[Block], rows: Sequence[Row], fence: object) -> None:
        """See :class:`Device`."""
        self._copy(blocks, rows, fence, into=False)

    def copy_in(self, rows: Sequence[Row], blocks: Sequence[Block], fence: object) -> None:
        """See :class:`Device`."""
        self._copy(blocks, rows, fence, into=True)

    def close(self) -> None:
        """Unpin the arena."""
        for address in self._registered:
            host_unregister(address)
        self._registered.clear()

    def _copy(self, blocks: Sequence[Block], rows: Sequence[Row], fence: object, *, into: bool) -> None:
        assert isinstance(fence, torch.cuda.Event)
        device, host, sizes = (torch.from_numpy(part) for part in plan(self._pages, blocks, [_at(row) for row in rows]))
        source, target = (host, device) if into else (device, host)
        stream = self._streams[into]
        done = torch.cuda.Event()
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            stream.wait_event(fence)
            # Host rows are not written while they are read, so the driver may reorder reads of a load; a store reads
            # memory that the compute stream goes on writing, so its reads must stay behind the fence.
            ops.swap_blocks_batch(source, target, sizes, is_src_access_order_any=into)
            done.record(stream)
        done.synchronize()  # releases the interpreter lock; the lists above must live until here


def _at(row: Row) -> int:
    return int(row.ctypes.data)
