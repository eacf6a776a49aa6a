"""KV memory on the host in the layouts of GPUs, allocated, viewed and registered by vLLM's own code.

The model and the configuration around it are not real: an engine on a CPU has one layout only.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import OffloadingConnectorWorker
from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor
from vllm.v1.worker.utils import allocate_kv_cache

BLOCKS = 24
TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Memory:
    """An allocation and what vLLM makes of it."""

    canonical: CanonicalKVCaches
    layers: list[list[torch.Tensor]]
    """Per group, the views that the model's layers get; the first dimension counts blocks, or fractions of one."""

    @property
    def raw(self) -> npt.NDArray[np.uint8]:
        """All of its bytes, shape (bytes,), writable."""
        storage = self.canonical.tensors[0].tensor.untyped_storage()
        flat = torch.tensor([], dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
        return cast("npt.NDArray[np.uint8]", flat.numpy())

    def block(self, group: int, block: int) -> list[torch.Tensor]:
        """A copy of what the layers see of a block."""
        return [view.unflatten(0, (BLOCKS, -1))[block].clone() for view in self.layers[group]]

    def payload(self, group: int, block: int) -> bytes:
        """What a part holds of a block, read through vLLM's canonical tensors."""
        refs = self.canonical.group_data_refs[group]
        return b"".join(
            self.canonical.tensors[ref.tensor_idx].tensor[block, : ref.page_size_bytes].numpy().tobytes()
            for ref in refs
        )

    def write(self, group: int, block: int, payload: bytes) -> None:
        """The reverse."""
        for ref in self.canonical.group_data_refs[group]:
            page, payload = payload[: ref.page_size_bytes], payload[ref.page_size_bytes :]
            target = self.canonical.tensors[ref.tensor_idx].tensor[block, : ref.page_size_bytes]
            target.numpy()[:] = np.frombuffer(page, np.int8)


SHAPE: dict[str, Any] = {"block_size": TOKENS, "num_kv_heads": 2, "head_size": 4, "dtype": torch.float16}


def _full(**changes: Any) -> FullAttentionSpec:
    return FullAttentionSpec(**SHAPE | changes)


def _sliding(**changes: Any) -> SlidingWindowSpec:
    return SlidingWindowSpec(**SHAPE | {"sliding_window": 32} | changes)


def _mla(**changes: Any) -> MLAAttentionSpec:
    return MLAAttentionSpec(**SHAPE | {"num_kv_heads": 1, "head_size": 9} | changes)


def _mixed() -> UniformTypeKVCacheSpecs:
    specs: dict[str, KVCacheSpec] = {"a": _full(), "b": _full(), "c": _full(num_kv_heads=3), "d": _full()}
    return UniformTypeKVCacheSpecs(block_size=TOKENS, kv_cache_specs=specs)


LAYOUTS: dict[str, tuple[str, list[tuple[list[str], KVCacheSpec]], int | None]] = {
    "full attention": ("LBHNC", [(["a", "b", "c"], _full())], None),
    "full attention, tokens before heads": ("LBNHC", [(["a", "b", "c"], _full())], None),
    "one layer": ("LBHNC", [(["a"], _full())], None),
    "kernel blocks of half a block": ("LBHNC", [(["a", "b"], _full())], TOKENS // 2),
    "pages of two sizes": ("LBHNC", [(["a", "b", "c", "d"], _mixed())], None),
    "padded pages": ("LBHNC", [(["a", "b"], _full(page_size_padded=640))], None),
    "full and sliding window groups over the same bytes": (
        "LBHNC", [(["a", "b"], _full()), (["c", "d"], _sliding()), (["e"], _sliding())], None,
    ),
    "sliding window, padded, beside full attention": (
        "LBHNC", [(["a", "b"], _full()), (["c", "d"], _sliding(num_kv_heads=1, page_size_padded=512))], None,
    ),
    "MLA": ("LBHNC", [(["a", "b", "c"], _mla())], None),
    "MLA, padded": ("LBHNC", [(["a", "b", "c"], _mla(page_size_padded=320))], None),
    "packed blocks": ("BLHNC", [(["a", "b", "c"], _full())], None),
    "packed blocks of pages of two sizes": ("BLHNC", [(["a", "b", "c", "d"], _mixed())], None),
    "packed blocks of several groups": ("BLHNC", [(["a", "b"], _full()), (["c", "d"], _sliding())], None),
}  # fmt: skip
"""By name: vLLM's layout, each group's layers and spec, tokens of a kernel block."""

APART = "pages of a packed block, apart"
NAMES = [*LAYOUTS, APART]


def memory(name: str) -> Memory:
    """A fresh allocation in one of `NAMES`, filled with zeros."""
    return _apart() if name == APART else _allocated(*LAYOUTS[name])


def _allocated(layout: str, groups: list[tuple[list[str], KVCacheSpec]], kernel_block: int | None) -> Memory:
    parallel = SimpleNamespace(
        tensor_parallel_size=1, prefill_context_parallel_size=1, decode_context_parallel_size=1, world_size=1, rank=0,
        cp_kv_cache_interleave_size=1,
    )  # fmt: skip
    cache = SimpleNamespace(
        get_resolved_kv_cache_layout=lambda: KVCacheLayout[layout], num_gpu_blocks_override=BLOCKS,
        prefix_cache_retention_interval=None,
    )  # fmt: skip
    vllm_config: Any = SimpleNamespace(
        attention_config=SimpleNamespace(hisparse_config=None), cache_config=cache, parallel_config=parallel,
        model_config=SimpleNamespace(get_total_num_kv_heads=lambda: 2),
    )  # fmt: skip
    config = get_kv_cache_config_from_groups(vllm_config, [KVCacheGroupSpec(*group) for group in groups], 1 << 30)
    kernel_blocks = None if kernel_block is None else [kernel_block] * len(groups)
    views = allocate_kv_cache(config, torch.device("cpu"), KVCacheLayout[layout], kernel_blocks)

    registered: list[CanonicalKVCaches] = []
    offloading = SimpleNamespace(canonical_layout=False, parallel=SimpleNamespace(rank=0))
    spec: Any = SimpleNamespace(replicated_layout=False, config=offloading, get_worker=registered.append)
    OffloadingConnectorWorker(spec, vllm_config, config).register_kv_caches(views)
    return Memory(registered[0], [[views[layer] for layer in layers] for layers, _ in groups])


def _apart() -> Memory:
    """What vLLM 0.32 makes of HiSparse's indexer alone: pages with other layers between one block's and the next one's."""
    block, sizes, starts = 1000, (200, 200, 200, 120), (0, 200, 500, 800)
    raw = torch.zeros(BLOCKS * block, dtype=torch.int8)
    views = [
        raw.as_strided((BLOCKS, size), (block, 1), storage_offset=at) for at, size in zip(starts, sizes, strict=True)
    ]
    tensors = [CanonicalKVCacheTensor(view, size) for view, size in zip(views, sizes, strict=True)]
    refs = [CanonicalKVCacheRef(number, size) for number, size in enumerate(sizes)]
    return Memory(CanonicalKVCaches(tensors, [refs]), [views])
