"""Engines whose ranks are processes of their own: the scheduler is here, KV memory is asked for through ``collective_rpc``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from vllm import LLM, SamplingParams, TokensPrompt, envs

from connector.tests.engine.harness import TINY, Engine, llm_with, record_jobs
from kvpool_connector.transfer import Kind
from kvpool_connector.vllm.manager import KVPoolManager
from kvpool_connector.vllm.worker import KVPoolWorker
from testkit.servers import wait_until

NAME = f"{__name__}.RankProbe"


class RankProbe:
    """vLLM mixes it into its worker (``worker_extension_cls``); called on the rank's main thread."""

    _probed: Engine | None = None

    def probe_start(self) -> None:
        """Begin to record jobs."""
        worker = KVPoolWorker.live
        assert worker is not None
        self._probed = Engine(llm=None, worker=worker, manager=None, jobs=record_jobs(worker))  # type: ignore[arg-type]

    def probe_snapshot(self, kind: str) -> dict[tuple[bytes, int], bytes]:
        """See :meth:`Engine.snapshot`."""
        return self._engine.snapshot(Kind(kind))

    def probe_overwrite(self) -> None:
        """Forget the jobs so far and overwrite KV memory."""
        self._engine.jobs.clear()
        self._engine.overwrite()

    def probe_idle(self) -> bool:
        """See :meth:`Mover.idle`."""
        return self._engine.mover.idle

    def probe_arena_bytes(self) -> int:
        """Of the rank's memory tier."""
        arena = self._engine.mover._rows.arena
        return arena.slots * arena.row_bytes

    def probe_sources(self) -> dict[str, int]:
        """Chunks of the recorded loads that come from below memory."""
        loads = self._engine.loads()
        return {
            "from_disk": sum(len(load.from_disk) for load in loads),
            "from_remote": sum(len(load.from_remote) for load in loads),
        }

    @property
    def _engine(self) -> Engine:
        assert self._probed is not None
        return self._probed


Snapshots = list[dict[tuple[bytes, int], bytes]]
"""By rank."""


class Ranks:
    """The scheduler is in this process, the ranks are not."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
        self.manager = core.scheduler.connector.connector_scheduler.manager
        assert isinstance(self.manager, KVPoolManager)
        llm.collective_rpc("probe_start")

    def generate(self, prompt: TokensPrompt, tokens: int = 16) -> tuple[list[int], int]:
        """Greedy token ids, and how many prompt tokens came from a cache."""
        (output,) = self.llm.generate([prompt], SamplingParams(max_tokens=tokens, temperature=0), use_tqdm=False)
        return list(output.outputs[0].token_ids), output.num_cached_tokens or 0

    def snapshots(self, kind: str) -> Snapshots:
        """Blocks of the recorded jobs."""
        return self.llm.collective_rpc("probe_snapshot", args=(kind,))

    def settle(self) -> None:
        """Stores and spills ended on all ranks."""

        def settled() -> bool:
            self.generate(TokensPrompt(prompt_token_ids=[5, 6, 7]), tokens=3)
            return all(self.llm.collective_rpc("probe_idle")) and not self.manager.pool.busy

        wait_until("stores and spills ended", settled)

    def forget(self, *, tiers: bool = False) -> None:
        """Nothing is left of former requests but what the tiers hold."""
        assert self.llm.reset_prefix_cache(reset_connector=tiers)
        self.llm.collective_rpc("probe_overwrite")


@contextlib.contextmanager
def ranks_running(model: str, kvpool: dict[str, Any], **options: Any) -> Iterator[Ranks]:
    """An engine whose ranks are processes of their own, two of them with a core each.

    Args:
        kvpool: the connector's configuration.
        options: of vLLM's ``LLM``; how many ranks, or ``distributed_executor_backend="mp"`` for one.
    """
    cores = sorted(os.sched_getaffinity(0))
    envs.disable_envs_cache()  # an engine that ran in this process before froze its settings
    with pytest.MonkeyPatch.context() as patch:
        if "distributed_executor_backend" not in options:
            patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        llm = llm_with(model, kvpool, worker_extension_cls=NAME, **(TINY | options))
        try:
            yield Ranks(llm)
        finally:
            llm.llm_engine.engine_core.shutdown()
    envs.disable_envs_cache()
