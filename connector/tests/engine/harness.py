"""An engine in this process with its connector's halves at hand, and byte-wise access to its KV memory."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import redis
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.config import KVTransferConfig
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

from kvpool_connector.transfer import Kind, Transfer
from kvpool_connector.vllm.manager import KVPoolManager
from kvpool_connector.vllm.worker import KVPoolWorker
from kvpool_connector.worker.device.base import Chunk
from kvpool_connector.worker.device.cpu import CpuDevice
from kvpool_connector.worker.mover import Mover
from testkit.host import Dtype, one_arithmetic
from testkit.oracle import text_alone
from testkit.patience import STORE_TIMEOUTS
from testkit.servers import KeyValueServer, wait_until

PATTERN = 0xA5
TINY: dict[str, Any] = {"skip_tokenizer_init": True, "block_size": 32}
"""Options of an engine for a model of :mod:`connector.tests.engine.models`: blocks so small that a short prompt has many."""
Said = tuple[str | TokensPrompt, int, list[int]]
"""A prompt, how many of its tokens came from a cache, and the greedy tokens that followed."""
_SETTINGS: dict[str, Any] = {
    "max_model_len": 4096, "enforce_eager": True, "dtype": "float32", "disable_log_stats": True, "seed": 0,
}  # fmt: skip
"""Of vLLM's ``LLM`` where a test does not say otherwise."""
WORDS = "the lighthouse keeper wrote in his journal every evening about wind tides ships gulls rain lamps and letters"


def prompt(number: int, words: int = 700) -> str:
    """The same text in every run."""
    source, choice = random.Random(number), WORDS.split()
    return f"Document {number}. " + " ".join(source.choice(choice) for _ in range(words))


def remote(store: KeyValueServer, folder: Path) -> dict[str, Any]:
    """The configuration's section for a store; its password goes into a file in the folder."""
    password = folder / "password"
    password.write_text(f"{store.password}\n")
    return {
        "type": store.kind, "host": store.host, "port": store.port, "password_file": str(password),
        "timeouts": STORE_TIMEOUTS,
    }  # fmt: skip


def empty(store: KeyValueServer) -> None:
    """The store holds nothing: tests share it."""
    with redis.Redis(port=store.port, password=store.password) as client:
        client.flushall()


def tokens(number: int, count: int, vocabulary: int) -> TokensPrompt:
    """The same token ids in every run, for models without a tokenizer."""
    source = random.Random(number)
    return TokensPrompt(prompt_token_ids=[source.randrange(3, vocabulary) for _ in range(count)])


@dataclasses.dataclass
class Engine:
    """One engine, and a record of the jobs that its worker was given."""

    llm: LLM
    worker: KVPoolWorker
    manager: KVPoolManager
    jobs: list[tuple[Transfer, list[Chunk]]]

    def generate(self, text: str | TokensPrompt, tokens: int = 8) -> tuple[list[int], int]:
        """Greedy token ids, and how many prompt tokens came from a cache."""
        (output,) = self.llm.generate([text], SamplingParams(max_tokens=tokens, temperature=0), use_tqdm=False)
        return list(output.outputs[0].token_ids), output.num_cached_tokens or 0

    def settle(self) -> None:
        """Stores and spills ended and were reported. In one process nothing steps an idle engine, so short requests do."""

        def settled() -> bool:
            self.generate(TokensPrompt(prompt_token_ids=[5, 6, 7]), tokens=3)
            return self.mover.idle and not self.manager.pool.busy

        wait_until("stores and spills ended", settled)

    @property
    def mover(self) -> Mover:
        """The rank's data plane."""
        assert isinstance(self.worker.mover, Mover)
        return self.worker.mover

    @property
    def chunk_tokens(self) -> int:
        """Return the granularity of hits, as the engine tells it on its metrics."""
        return self.manager.shape.chunk_tokens

    def cacheable_tokens(self, prompt_tokens: int) -> int:
        """Return the tokens of a prompt that are in whole chunks; the last one is always computed."""
        return (prompt_tokens - 1) // self.chunk_tokens * self.chunk_tokens

    @property
    def block_tokens(self) -> int:
        """Tokens of vLLM's block, which MLA on a CPU may have made smaller than asked for."""
        return self.llm.llm_engine.vllm_config.cache_config.block_size

    def chunks(self, kind: Kind) -> dict[bytes, Chunk]:
        """Where the chunks of the recorded jobs lie in KV memory."""
        return {
            key: chunk
            for transfer, chunks in self.jobs if transfer.kind is kind
            for key, chunk in zip(transfer.keys, chunks, strict=True)
        }  # fmt: skip

    def loads(self) -> list[Transfer]:
        """Loads since the last `forget`."""
        return [transfer for transfer, _ in self.jobs if transfer.kind is Kind.LOAD]

    @property
    def _pages(self) -> Any:
        device = self.mover._device
        assert isinstance(device, CpuDevice)
        return device._pages

    def blocks_of(self, chunk: Chunk) -> dict[int, bytes]:
        """A chunk's bytes in KV memory, by place of the block in the chunk."""
        return {
            chunk.first + place: b"".join(view[block, :size].tobytes() for view, size in self._pages[chunk.group])
            for place, block in enumerate(chunk.blocks)
        }

    def snapshot(self, kind: Kind) -> dict[tuple[bytes, int], bytes]:
        """Bytes in KV memory of all blocks of the recorded jobs, by key and place in the chunk."""
        return {
            (key, place): data
            for key, chunk in self.chunks(kind).items()
            for place, data in self.blocks_of(chunk).items()
        }

    def overwrite(self) -> None:
        """Every byte of KV memory is the pattern."""
        for pages in self._pages:
            for view, _ in pages:
                view[:] = PATTERN

    def written(self) -> set[int]:
        """Block ids that are not all pattern any more, whichever group's."""
        changed = [(view[:, :size] != PATTERN).any(axis=1) for pages in self._pages for view, size in pages]
        return {int(block) for each in changed for block in np.flatnonzero(each)}

    def forget(self, *, tiers: bool = False) -> None:
        """Reset vLLM's own prefix cache, and the memory tier if asked for."""
        assert self.llm.reset_prefix_cache(reset_connector=tiers)
        self.jobs.clear()

    def assert_nothing_is_left(self) -> None:
        """No reference, no promise, no ticket, no queued write."""
        self.settle()
        pool = self.manager.pool
        assert not pool.jobs._running
        assert not pool.jobs._load_of
        assert not pool.jobs._store_of
        assert not pool.lookups.reserved
        assert not pool.lookups.failed_loads
        assert not pool.lookups.waiting
        assert not pool.spills.busy
        assert not any(pool.index._refs), "referenced slots"
        assert not any(pool.index._held_now), "promised slots"
        assert pool.index.free + len(pool.index) == pool.index.slots
        assert self.mover.idle


def record_jobs(worker: KVPoolWorker) -> list[tuple[Transfer, list[Chunk]]]:
    """From now on, every job that the worker is given."""
    jobs: list[tuple[Transfer, list[Chunk]]] = []
    mover = worker.mover
    assert isinstance(mover, Mover)
    start = mover._start

    def record(job_id: int, transfer: Transfer, chunks: list[Chunk]) -> Any:
        jobs.append((transfer, chunks))
        return start(job_id, transfer, chunks)

    mover._start = record  # type: ignore[method-assign, assignment]
    return jobs


class Alone:
    """vLLM without a connector in this process, which knows the right text of a prompt (docs/texts.md)."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def text(self, prompt: str | TokensPrompt, split: int, tokens: int = 8) -> list[int]:
        """Return the greedy tokens to a prompt of which ``split`` tokens are in vLLM's own prefix cache."""
        ids = self._llm.get_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt["prompt_token_ids"]
        sampling = SamplingParams(max_tokens=tokens, temperature=0)

        def generate(of: Sequence[int]) -> tuple[list[int], int]:
            (output,) = self._llm.generate([TokensPrompt(prompt_token_ids=list(of))], sampling, use_tqdm=False)
            return list(output.outputs[0].token_ids), output.num_cached_tokens or 0

        return text_alone(generate, self._llm.reset_prefix_cache, ids, split)


@contextlib.contextmanager
def vllm_alone(model: str, **options: Any) -> Iterator[Alone]:
    """Start vLLM without a connector, with the settings of :func:`running`."""
    llm = LLM(model, **(_SETTINGS | options))
    try:
        yield Alone(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()


def assert_right_texts(model: str, said: Sequence[Said], dtype: Dtype, **options: Any) -> None:
    """Check texts with those of vLLM alone, and in float32 with each other as well.

    Args:
        options: of the engine that said them.
    """
    if one_arithmetic(dtype):
        for prompt in {str(prompt): prompt for prompt, _, _ in said}.values():
            assert len({tuple(text) for other, _, text in said if other == prompt}) == 1, "one text per prompt"
    with vllm_alone(model, dtype=dtype, **options) as alone:
        for prompt, split, text in said:
            assert text == alone.text(prompt, split, len(text)), f"the text behind {split} cached tokens"


def llm_with(model: str, kvpool: dict[str, Any] | None, **options: Any) -> LLM:
    """Start vLLM with the connector; see :func:`running`. ``kvpool`` is None where a file has the configuration.

    An engine that fails to start leaves the groups of its process behind (``EngineCore`` ends them
    in its ``shutdown`` alone), and the next engine would take them as they are: without a group of
    experts, for example, which its own model needs, or with the other engine's connector.
    """
    transfer = KVTransferConfig(
        kv_connector="KVPoolConnector", kv_connector_module_path="kvpool_connector.vllm", kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={} if kvpool is None else {"kvpool": kvpool},
    )  # fmt: skip
    try:
        return LLM(model, kv_transfer_config=transfer, **(_SETTINGS | options))
    except BaseException:
        ensure_kv_transfer_shutdown()
        cleanup_dist_env_and_memory()
        raise


@contextlib.contextmanager
def running(model: str, kvpool: dict[str, Any], **options: Any) -> Iterator[Engine]:
    """An engine with the connector.

    Args:
        kvpool: the connector's configuration.
        options: of vLLM's ``LLM``.
    """
    llm = llm_with(model, kvpool, **options)
    try:
        worker = KVPoolWorker.live
        assert worker is not None
        core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
        manager = core.scheduler.connector.connector_scheduler.manager
        assert isinstance(manager, KVPoolManager)
        yield Engine(llm, worker, manager, record_jobs(worker))
    finally:
        llm.llm_engine.engine_core.shutdown()
    assert KVPoolWorker.live is None
