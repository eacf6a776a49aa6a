"""Some halves of an engine start and others don't: with ``continue`` the engine serves without the cache, and nothing waits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from vllm import LLM, SamplingParams, envs
from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import TransferJob
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    UniformTypeKVCacheSpecs,
)

from connector.tests.engine import half_probe, models
from connector.tests.engine.harness import TINY, llm_with, tokens
from kvpool_connector.transfer import Kind, Orders, Spill, Tier, Transfer
from kvpool_connector.vllm.disabled import DisabledConnector
from kvpool_connector.vllm.half import DisabledHalf
from kvpool_connector.vllm.manager import KVPoolManager
from kvpool_connector.vllm.messages import KVPoolMetadata
from kvpool_connector.vllm.spec import TransferSpec
from kvpool_connector.vllm.support import group_specs, has_mixed_layers

pytestmark = pytest.mark.timeout(300)

PROMPTS = [tokens(number, 300, models.VOCABULARY) for number in range(8)]
KVPOOL = {"tiers": {"cpu": {"size": "64Mi"}}, "on_failure": "continue"}
MISSING = "/nowhere/kvpool.yaml"


# ---- engines -----------------------------------------------------------------------------------------------


class Engine:
    """The scheduler is in this process, the ranks are not; some read another configuration file."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._model = models.save(models.llama, folder / "model")
        self._file = folder / "kvpool.yaml"
        self._file.write_text(yaml.safe_dump(KVPOOL))
        self._patch = patch

    def start(self, *, here: str | None, ranks: str, there: str | None, **options: Any) -> LLM:
        """Start vLLM.

        Args:
            here: the file that the scheduler's process reads, None for the right one.
            ranks: those that read ``there`` instead.
        """
        self._patch.setenv("KVPOOL_CONFIG_FILE", here or str(self._file))
        self._patch.setenv("KVPOOL_ON_FAILURE", "continue")
        self._patch.setenv(half_probe.OTHER_FILE, there or str(self._file))
        self._patch.setenv(half_probe.RANKS, ranks)
        self._patch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # the probe works when it is imported
        cores = sorted(os.sched_getaffinity(0))
        if options.get("tensor_parallel_size") == 2:
            self._patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        envs.disable_envs_cache()  # an engine that ran in this process before froze its settings
        small = {
            "num_gpu_blocks_override": 40,
            "max_num_seqs": 8,
            "max_model_len": 512,
        }  # so that requests are preempted
        return llm_with(self._model, None, worker_extension_cls=half_probe.NAME, **(TINY | small | options))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(tmp_path, monkeypatch)


def assert_served(llm: LLM) -> None:
    """Requests that were sent together, and more than fit, are answered."""
    sampling = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    outputs = llm.generate(PROMPTS, sampling, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [40] * len(PROMPTS)


def connector_of(llm: LLM) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler.connector  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ranks", "options"),
    [("0", {"distributed_executor_backend": "mp"}), ("1", {"tensor_parallel_size": 2})],
    ids=["the only rank", "one of two ranks"],
)
def test_a_rank_without_its_file(engine: Engine, ranks: str, options: dict[str, Any]) -> None:
    """The scheduler's half hears of it, and stops looking up and storing. A reset changes nothing of that."""
    llm = engine.start(here=None, ranks=ranks, there=MISSING, **options)
    try:
        connector = connector_of(llm)
        manager = connector.connector_scheduler.manager
        assert isinstance(manager, KVPoolManager)
        for _ in range(2):
            assert_served(llm)
            assert MISSING in manager.pool.broken
            assert not connector.has_pending_push_work()
            assert not manager.pool.jobs.running
            assert not len(manager.pool.index)
            assert llm.reset_prefix_cache(reset_connector=True)
    finally:
        llm.llm_engine.engine_core.shutdown()


def test_a_scheduler_without_its_file(engine: Engine) -> None:
    """The rank is well and has nothing to do."""
    llm = engine.start(here=MISSING, ranks="0", there=None, distributed_executor_backend="mp")
    try:
        assert isinstance(connector_of(llm), DisabledConnector)
        for _ in range(2):
            assert_served(llm)
            assert not connector_of(llm).has_pending_push_work()
            assert llm.reset_prefix_cache(reset_connector=True)
    finally:
        llm.llm_engine.engine_core.shutdown()


def test_a_rank_with_another_tenant(engine: Engine, tmp_path: Path) -> None:
    """Its parts would be those of other keys, so it ends, and the scheduler's half hears of it."""
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(KVPOOL | {"tenant": "other"}))
    llm = engine.start(here=None, ranks="0", there=str(other), distributed_executor_backend="mp")
    try:
        connector = connector_of(llm)
        assert_served(llm)
        assert "must be the same on all nodes" in connector.connector_scheduler.manager.pool.broken
        assert not connector.has_pending_push_work()
    finally:
        llm.llm_engine.engine_core.shutdown()


# ---- one rank ----------------------------------------------------------------------------------------------


@pytest.fixture
def half() -> DisabledHalf:
    """A rank's half that has told why it does nothing."""
    transfer = KVTransferConfig(
        kv_connector="KVPoolConnector", kv_connector_module_path="kvpool_connector.vllm", kv_role="kv_both"
    )
    config = VllmConfig(kv_transfer_config=transfer)
    caches = KVCacheConfig(num_blocks=1, kv_cache_tensors=[], kv_cache_groups=[])
    half = DisabledHalf(config, KVConnectorRole.WORKER, caches, "no file")
    told = half.build_connector_worker_meta()
    assert told is not None
    assert told.reports.broken == "no file"
    return half


def job(kind: Kind, ticket: int, request: str) -> TransferJob:
    spec = TransferSpec(Transfer(kind, ticket, request, (b"a", b"b"), (0, 1)), "identity")
    return TransferJob(request, spec, spec)


def test_every_job_is_acknowledged(half: DisabledHalf) -> None:
    """Loads as failed, so that vLLM computes them; no slot stays in use, and no write to a lower tier."""
    orders = Orders((Spill(13, Tier.REMOTE, (b"a",), (0,)),))
    half.bind_connector_metadata(
        KVPoolMetadata({1: job(Kind.LOAD, 11, "reads")}, {2: job(Kind.STORE, 12, "writes")}, {2}, orders)
    )
    half.handle_preemptions(half._get_connector_metadata())
    half.start_load_kv(None)  # type: ignore[arg-type]
    results = half.get_transfer_results(set())
    told = half.build_connector_worker_meta()
    assert (results.finished_recving, results.failed_recving) == ({"reads"}, {"reads"})
    assert told is not None
    assert told.completed_jobs == {1: 1, 2: 1}
    assert told.reports.failed == {11: {0, 1}, 12: {0, 1}}
    assert told.reports.spilled == {13: [{0}]}


def test_a_step_without_work_says_nothing(half: DisabledHalf) -> None:
    half.bind_connector_metadata(half.build_connector_meta(None))  # type: ignore[arg-type]
    half.start_load_kv(None)  # type: ignore[arg-type]
    assert half.get_transfer_results(set()).finished_recving == set()
    assert half.build_connector_worker_meta() is None


# ---- one source for both processes -------------------------------------------------------------------------


def caches_of(spec: Any, *layers: list[str]) -> KVCacheConfig:
    """One group whose layers lie in so many places."""
    names = [name for place in layers for name in place]
    tensors = [KVCacheTensor(size=1024, layers=place, layer_stride=1, block_stride=1) for place in layers]
    return KVCacheConfig(num_blocks=1, kv_cache_tensors=tensors, kv_cache_groups=[KVCacheGroupSpec(names, spec)])


def test_layers_of_different_shapes_are_seen_by_both_processes() -> None:
    """vLLM shows a rank all layers of a group, and its scheduler the first one alone."""
    small, large = (
        FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=size, dtype=torch.float32) for size in (32, 64)
    )
    both = UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={"a": small, "b": large})
    of_rank, of_scheduler = caches_of(both, ["a"], ["b"]), caches_of(small, ["a"], ["b"])
    assert group_specs(of_rank) == group_specs(of_scheduler) == [small]
    assert has_mixed_layers(of_rank)
    assert has_mixed_layers(of_scheduler)
    assert not has_mixed_layers(caches_of(small, ["a", "b"]))
