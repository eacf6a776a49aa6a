"""vLLM's OffloadingWorker over the mover: registration of KV memory, translation of jobs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, LoadStoreSpec, OffloadingWorker, TransferResult

from kvpool_connector.log import get_logger
from kvpool_connector.stores import Breaker
from kvpool_connector.tiers.arena import Arena, row_bytes_for
from kvpool_connector.transfer import Transfer
from kvpool_connector.vllm.spec import KVPoolSpec, TransferSpec, device_of
from kvpool_connector.worker.device.base import Block, Device, Page
from kvpool_connector.worker.device.cpu import CpuDevice
from kvpool_connector.worker.mover import Mover, Remote

logger = get_logger(__name__)


class KVPoolWorker(OffloadingWorker):
    """One rank's data plane. Never raises into vLLM, never refuses a job and never reports one as unsuccessful: vLLM
    asserts all three. Faults go out through the mover's reports."""

    live: ClassVar[KVPoolWorker | None] = None

    def __init__(self, spec: KVPoolSpec, kv_caches: CanonicalKVCaches) -> None:
        """Raises:
        RuntimeError: a second registration in one process. vLLM keeps one worker connector per process; a second
            engine's blocks would be copied from the first one's memory.
        ValueError: KV memory that the connector cannot copy.
        """
        if KVPoolWorker.live is not None:
            raise RuntimeError(
                "kvpool: KV memory was registered in this process before; run each engine in a process of its own"
            )
        self._identity = spec.identity
        rank = spec.config.parallel.rank
        device = make_device(kv_caches)
        if row_bytes_for(max(device.payload_bytes)) > spec.row_bytes:
            raise ValueError(f"a block of {max(device.payload_bytes)} bytes does not fit a row of {spec.row_bytes}")
        arena = Arena(spec.slots, spec.row_bytes)
        device.adopt(arena)
        arena.populate()
        self.mover = Mover(
            device=device,
            arena=arena,
            identity=spec.identity,
            name=lambda key: spec.part_name(rank, key),
            remote=_remote(spec),
        )
        KVPoolWorker.live = self

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Queue a store."""
        self.mover.store(job_id, self._transfer(dst_spec), blocks_of(src_spec))
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Queue a load."""
        self.mover.load(job_id, self._transfer(src_spec), blocks_of(dst_spec))
        return True

    def get_finished(self) -> list[TransferResult]:
        """Ended jobs, as successes."""
        return [TransferResult(done.job_id, True, done.nbytes, done.seconds) for done in self.mover.poll()]

    def wait(self, job_ids: set[int]) -> None:
        """Until these jobs left KV memory alone."""
        self.mover.wait(job_ids)

    def shutdown(self) -> None:
        """Finish and end the threads."""
        self.mover.close()
        if KVPoolWorker.live is self:
            KVPoolWorker.live = None

    def _transfer(self, spec: LoadStoreSpec) -> Transfer:
        assert isinstance(spec, TransferSpec)
        # Both processes derive the identity from the same configuration; if they ever disagree, every lookup would miss.
        assert spec.identity == self._identity, f"identity differs between processes: {spec.identity} {self._identity}"
        return spec.transfer


def blocks_of(spec: GPULoadStoreSpec) -> list[Block]:
    """(group, block id) of each key: vLLM lists keys and blocks of a job in the same order, group by group."""
    groups = [group for group, size in enumerate(spec.group_sizes) for _ in range(size)]
    return list(zip(groups, spec.block_ids.tolist(), strict=True))


def make_device(kv_caches: CanonicalKVCaches) -> Device:
    """The copier for the device that KV memory is on.

    Raises:
        ValueError: neither CPU nor CUDA.
    """
    where = device_of(kv_caches)
    if where.type == "cpu":
        views = [tensor.tensor.numpy().view(np.uint8) for tensor in kv_caches.tensors]
        return CpuDevice(
            [[(views[ref.tensor_idx], ref.page_size_bytes) for ref in refs] for refs in kv_caches.group_data_refs]
        )
    if where.type == "cuda":
        from kvpool_connector.worker.device.cuda import CudaDevice

        tensors = [tensor.tensor for tensor in kv_caches.tensors]
        return CudaDevice(
            [
                [
                    Page(tensors[ref.tensor_idx].data_ptr(), tensors[ref.tensor_idx].stride(0), ref.page_size_bytes)
                    for ref in refs
                ]
                for refs in kv_caches.group_data_refs
            ],
            where,
        )
    raise ValueError(f"KV memory is on {where.type!r}; kvpool copies from CUDA and CPU. Run without kv_transfer_config")


def _remote(spec: KVPoolSpec) -> Remote | None:
    if spec.settings.remote is None:
        return None
    breaker, timeouts = Breaker(), spec.settings.remote.timeouts
    return Remote(spec.connect(breaker), spec.connect(breaker), timeouts.fetch_ms / 1000, timeouts.put_ms / 1000)
