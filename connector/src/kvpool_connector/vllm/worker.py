"""vLLM's OffloadingWorker over the mover: registration of KV memory, translation of jobs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, LoadStoreSpec, OffloadingWorker, TransferResult

from kvpool_connector.config import ConfigError
from kvpool_connector.log import get_logger
from kvpool_connector.stores import Breaker, Memory
from kvpool_connector.tiers.arena import Arena, row_bytes_for
from kvpool_connector.tiers.slab import Slab
from kvpool_connector.tiers.starting import started
from kvpool_connector.transfer import Transfer
from kvpool_connector.vllm.spec import KVPoolSpec, TransferSpec, device_of
from kvpool_connector.worker.device.base import Chunk, Device, Page
from kvpool_connector.worker.device.cpu import CpuDevice
from kvpool_connector.worker.mover import Mover
from kvpool_connector.worker.null import NullMover
from kvpool_connector.worker.rows import Parts
from kvpool_connector.worker.secondary.disk import Disk
from kvpool_connector.worker.secondary.remote import Remote

logger = get_logger(__name__)


class SecondRegistration(RuntimeError):
    """KV memory was registered in this process before, by an engine whose worker must be left alone."""


class KVPoolWorker(OffloadingWorker):
    """One rank's data plane. Never raises into vLLM, never refuses a job and never reports one as unsuccessful: vLLM
    asserts all three. Faults go out through the mover's reports."""

    live: ClassVar[KVPoolWorker | None] = None

    def __init__(self, spec: KVPoolSpec, mover: Mover | NullMover) -> None:
        self._identity = spec.geometry.identity
        self._blocks_per_chunk = spec.geometry.blocks.per_chunk
        self._stops = spec.settings.on_failure == "stop"
        self.mover = mover
        KVPoolWorker.live = self

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Queue a store."""
        transfer = self._transfer(dst_spec)
        self.mover.store(job_id, transfer, chunks_of(src_spec, self._blocks_per_chunk))
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Queue a load."""
        transfer = self._transfer(src_spec)
        self.mover.load(job_id, transfer, chunks_of(dst_spec, self._blocks_per_chunk))
        return True

    def get_finished(self) -> list[TransferResult]:
        """Ended jobs, as successes."""
        return [TransferResult(done.job_id, True, done.nbytes, done.seconds) for done in self.mover.outbox.poll()]

    def wait(self, job_ids: set[int]) -> None:
        """Until these jobs left KV memory alone."""
        self.mover.wait(job_ids)

    def shutdown(self) -> None:
        """Finish and end the threads."""
        self.mover.close()
        if KVPoolWorker.live is self:
            KVPoolWorker.live = None

    def _transfer(self, spec: LoadStoreSpec) -> Transfer:
        """Return the transfer. Called before the mover is: another one may be in its place afterwards.

        Raises:
            RuntimeError: this rank's configuration or weights are not those of the scheduler's half.
        """
        assert isinstance(spec, TransferSpec)
        if spec.identity != self._identity and isinstance(self.mover, Mover):
            # Both derive the identity from the same sources, so a file differs between two nodes. No job ran yet.
            why = (
                f"identity {self._identity} differs from the scheduler's {spec.identity}: kvpool's configuration, the "
                "weights and vLLM must be the same on all nodes of an engine"
            )
            if self._stops:
                raise RuntimeError(f"kvpool: {why}")
            logger.error("kvpool ends on this rank, the engine runs without it: %s", why)
            self.mover.close()
            self.mover = NullMover(why)
        return spec.transfer


def make_worker(spec: KVPoolSpec, kv_caches: CanonicalKVCaches) -> KVPoolWorker:
    """Return this rank's half.

    Raises:
        ConfigError: KV memory that the connector cannot copy, a folder that it cannot use.
        SecondRegistration: vLLM keeps one worker connector per process; a second engine's blocks would be copied from
            the first one's memory.
    """
    if KVPoolWorker.live is not None:
        raise SecondRegistration(
            "kvpool: KV memory was registered in this process before; run each engine in a process of its own"
        )
    return KVPoolWorker(spec, _make_mover(spec, kv_caches))


def make_disabled_worker(spec: KVPoolSpec, error: Exception) -> KVPoolWorker:
    """Return a half that fails every job, in place of this rank's half that could not start.

    Raises:
        Exception: ``error``, where ``on_failure`` is "stop".
    """
    if spec.settings.on_failure == "stop":
        raise error
    logger.error("kvpool cannot start on rank %d, the engine runs without it: %s", spec.config.parallel.rank, error)
    return KVPoolWorker(spec, NullMover(str(error)))


def _make_mover(spec: KVPoolSpec, kv_caches: CanonicalKVCaches) -> Mover:
    rank, tier, geometry = spec.config.parallel.rank, spec.settings.tiers.disk, spec.geometry
    per_chunk = geometry.blocks.per_chunk
    device = make_device(kv_caches)
    largest = max(device.block_bytes) * per_chunk
    if row_bytes_for(largest) > geometry.row_bytes:
        raise ConfigError(
            f"a chunk of {largest} bytes does not fit a row of {geometry.row_bytes}: please report this layout"
        )
    arena = Arena(geometry.arena_rows, geometry.row_bytes)
    with contextlib.ExitStack() as undone:  # a half that cannot start leaves no lock and no pinned memory
        disk = None if tier is None else Disk(_slab(spec, Path(tier.path)), geometry.disk_lends)
        if disk is not None:
            undone.callback(disk.slab.close)
        device.adopt(arena)
        undone.callback(device.close)
        remote = _remote(spec, arena)
        undone.pop_all()
    arena.populate()
    index_of = {group.group_id: number for number, group in enumerate(spec.config.groups)}
    payload = {
        group_id.to_bytes(4, "big"): device.block_bytes[number] * per_chunk for group_id, number in index_of.items()
    }
    parts = Parts(
        identity=geometry.identity,
        name=lambda key: geometry.part_name(rank, key),
        payload_bytes=lambda key: payload[key[-4:]],  # vLLM's key ends in the group: make_offload_key
        dtype=spec.config.model.dtype,
    )
    return Mover(device=device, arena=arena, parts=parts, disk=disk, remote=remote)


def _slab(spec: KVPoolSpec, folder: Path) -> Slab:
    """Raises:
    ConfigError: the folder cannot be used, or its file system does not answer.
    """
    rank, geometry = spec.config.parallel.rank, spec.geometry
    return started(
        folder,
        lambda beat: Slab(folder, rank, geometry.disk_slots, geometry.row_bytes, geometry.identity, beat),
        discard=lambda late: late.close(),
    )


def chunks_of(spec: GPULoadStoreSpec, blocks_per_chunk: int) -> list[Chunk]:
    """The blocks of each key: vLLM lists keys and blocks of a job in the same order, group by group.

    Of a group, ``block_indices`` says where in its chunk the first block lies; the others follow without a gap.
    """
    chunks: list[Chunk] = []
    blocks = iter(spec.block_ids.tolist())
    for group, (size, index) in enumerate(zip(spec.group_sizes, spec.block_indices, strict=True)):
        first, left = index % blocks_per_chunk, size
        while left:
            count = min(blocks_per_chunk - first, left)
            chunks.append(Chunk(group, first, tuple(itertools.islice(blocks, count))))
            first, left = 0, left - count
    return chunks


def make_device(kv_caches: CanonicalKVCaches) -> Device:
    """The copier for the device that KV memory is on.

    Raises:
        ConfigError: neither CPU nor CUDA.
    """
    where = device_of(kv_caches)
    copier = COPIERS.get(where.type)
    if copier is None:
        raise ConfigError(
            f"KV memory is on {where.type!r}; kvpool copies from CUDA and CPU. Run without kv_transfer_config"
        )
    return copier(kv_caches)


def _plain_copies(kv_caches: CanonicalKVCaches) -> Device:
    views = [tensor.tensor.numpy().view(np.uint8) for tensor in kv_caches.tensors]
    return CpuDevice(
        [[(views[ref.tensor_idx], ref.page_size_bytes) for ref in refs] for refs in kv_caches.group_data_refs]
    )


def _batched_copies(kv_caches: CanonicalKVCaches) -> Device:
    from kvpool_connector.worker.device.cuda import CudaDevice

    return CudaDevice(pages_of(kv_caches), device_of(kv_caches))


COPIERS: dict[str, Callable[[CanonicalKVCaches], Device]] = {"cpu": _plain_copies, "cuda": _batched_copies}
"""The copier for each type of device that KV memory may be on. The tests' GPU, which is emulated on
host memory (``testkit/paced``), registers CUDA's for its memory."""


def pages_of(kv_caches: CanonicalKVCaches) -> list[list[Page]]:
    """Where each group's blocks lie, in payload order. vLLM's canonical tensors have one byte per element."""
    tensors = [tensor.tensor for tensor in kv_caches.tensors]
    return [
        [
            Page(tensors[ref.tensor_idx].data_ptr(), tensors[ref.tensor_idx].stride(0), ref.page_size_bytes)
            for ref in refs
        ]
        for refs in kv_caches.group_data_refs
    ]


def _remote(spec: KVPoolSpec, arena: Arena) -> Remote | None:
    if spec.settings.remote is None:
        return None
    breaker, timeouts, lends = Breaker(), spec.settings.remote.timeouts, spec.geometry.store_lends
    memory = Memory(arena.view, lends)
    reader, writer = spec.connect(breaker, memory, lends=True), spec.connect(breaker, memory)
    return Remote(reader, writer, timeouts.fetch_ms / 1000, timeouts.put_ms / 1000, lends)
