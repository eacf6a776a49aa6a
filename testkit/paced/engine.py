"""Start a paced engine, ask it prompts and read what it did.

    with engine("llama-8b", folder, kvpool={"tiers": {"cpu": {"size": "1Gi"}}}) as paced:
        answers = paced.generate([tokens(1, 4000)], concurrency=4)
        print(answers[0].first_token_s, answers[0].cached_tokens, paced.figure("kvpool:admitted", "remote"))

The caller's environment has to hold vLLM's CPU build. An engine of its own process needs a caller
that may be imported again: a script with ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from testkit.engine import CONNECTOR, ROOT, environment
from testkit.engine_process import KV_TRANSFER
from testkit.paced.model import VOCABULARY, write_model
from testkit.paced.profiles import PROFILES, Profile
from testkit.paced.report import Report
from testkit.servers import wait_until

PLUGIN = Path(__file__).resolve().parent / "plugin"
IDLE_TOKENS = 3
IDLE_LOOKS = 3


@dataclasses.dataclass(frozen=True)
class Answer:
    """One request's end. Times are in seconds since the request was given to vLLM."""

    tokens: list[int]
    cached_tokens: int
    """Tokens of the prompt that vLLM's own prefix cache or the connector held."""
    first_token_s: float
    total_s: float


class WrongKv(AssertionError):
    """A forward pass read KV that was not the one that belongs there."""


@dataclasses.dataclass
class PacedEngine:
    """A running engine. Not for use by several threads."""

    profile: Profile
    llm: Any
    """vLLM's ``LLMEngine``."""
    _figures: Any
    _asked: int = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], concurrency: int = 1, max_tokens: int = 8, **sampling: Any
    ) -> list[Answer]:
        """Ask the prompts, so many at a time, and return the answers in the order of the prompts.

        Args:
            sampling: further fields of vLLM's ``SamplingParams``.
        """
        from vllm import SamplingParams, TokensPrompt

        params = SamplingParams(**({"max_tokens": max_tokens, "temperature": 0} | sampling))
        waiting = list(enumerate(prompts))[::-1]
        numbers: dict[str, int] = {}
        began: dict[int, float] = {}
        first: dict[int, float] = {}
        answers: dict[int, Answer] = {}
        while waiting or len(answers) < len(prompts):
            while waiting and len(began) - len(answers) < concurrency:
                number, prompt = waiting.pop()
                self._asked += 1
                name = f"request-{self._asked}"
                numbers[name] = number
                began[number] = time.monotonic()
                self.llm.add_request(name, TokensPrompt(prompt_token_ids=list(prompt)), params)
            for output in self.llm.step():
                now = time.monotonic()
                number = numbers[output.request_id]
                completion = output.outputs[0]
                if completion.token_ids:
                    first.setdefault(number, now - began[number])
                if output.finished:
                    tokens = list(completion.token_ids)
                    cached = output.num_cached_tokens or 0
                    answers[number] = Answer(tokens, cached, first[number], now - began[number])
        return [answers[number] for number in range(len(prompts))]

    def settle(self) -> None:
        """Wait until stores and writes ended.

        Short requests step the engine meanwhile, because an idle engine reports nothing. A write is
        ordered some steps after its store was reported, so one look is not enough.
        """

        def idle() -> bool:
            self.generate([[5, 6, 7]], max_tokens=IDLE_TOKENS)
            return all(self.llm.collective_rpc("paced_connector_idle"))

        wait_until("stores and writes ended", lambda: all(idle() for _ in range(IDLE_LOOKS)))

    def forget(self, *, tiers: bool = False) -> None:
        """Drop vLLM's own prefix cache and overwrite KV memory.

        What is read later was loaded or computed after this call.

        Args:
            tiers: empty the connector's memory and disk tiers, too.
        """
        self.settle()
        assert self.llm.reset_prefix_cache(reset_connector=tiers), "a request still holds blocks"
        self.llm.collective_rpc("paced_spoil")

    def figure(self, name: str, labels: str = "") -> float | None:
        """Return a figure of the connector, see :meth:`testkit.paced.figures.Figures.value`."""
        value: float | None = self._figures.value(name, labels)
        return value

    def figures(self) -> dict[str, float]:
        """Return all figures of the connector."""
        found: dict[str, float] = self._figures.all()
        return found

    @property
    def preempted(self) -> int:
        """Return how many requests had to give up their blocks so far."""
        count: int = self._figures.preempted
        return count

    def reports(self, forget: bool = False) -> list[Report]:
        """Return what each rank's device saw since the last report that was forgotten."""
        return [Report.of(fields) for fields in self.llm.collective_rpc("paced_report", kwargs={"forget": forget})]

    def check(self) -> int:
        """Return how many positions were read on all ranks since the last call, all of them right.

        Raises:
            WrongKv: some were wrong, or work on a stream raised.
        """
        reports = self.reports(forget=True)
        lines = [line for report in reports for line in report.broken + report.faults]
        wrong = sum(report.wrong for report in reports)
        if lines or wrong:
            shown = "\n".join(lines[:10])
            raise WrongKv(f"{wrong} of {sum(report.checked for report in reports)} positions were wrong:\n{shown}")
        return sum(report.checked for report in reports)


def tokens(number: int, count: int) -> list[int]:
    """Return a prompt of random tokens: the same one for the same number."""
    source = random.Random(number)  # noqa: S311 - a text, not a secret
    return [source.randrange(3, VOCABULARY) for _ in range(count)]


@contextlib.contextmanager
def engine(
    profile: str | Profile,
    folder: Path,
    kvpool: Mapping[str, Any] | None = None,
    *,
    separate: bool = True,
    check: bool = True,
    transfer: Mapping[str, Any] = KV_TRANSFER,
    **options: Any,
) -> Iterator[PacedEngine]:
    """Run an engine.

    Args:
        profile: one of ``PROFILES`` or a changed one.
        folder: for the model, which engines of the same profile may share.
        kvpool: the connector's configuration; None for vLLM alone.
        separate: the engine gets a process of its own, as in service. Otherwise scheduler, runner
            and device are in this one, where tests can reach them.
        check: raise at the end what :meth:`PacedEngine.check` finds.
        transfer: vLLM's ``kv_transfer_config``, but for the connector's configuration.
        options: of vLLM's ``EngineArgs``.

    Raises:
        WrongKv: see :meth:`PacedEngine.check`.
    """
    profile = PROFILES[profile] if isinstance(profile, str) else profile
    prepare_environment(separate=separate, ranks=profile.ranks)
    from vllm import envs
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from testkit.paced.figures import Figures

    envs.disable_envs_cache()  # an engine that ran in this process before froze its settings
    if kvpool is not None:
        options["kv_transfer_config"] = dict(transfer) | {"kv_connector_extra_config": {"kvpool": dict(kvpool)}}
    defaults: dict[str, Any] = {
        "model": write_model(profile, folder), "additional_config": profile.as_config(), "enforce_eager": True,
        "skip_tokenizer_init": True, "dtype": "bfloat16", "block_size": profile.block_tokens, "seed": 0,
        "max_model_len": profile.max_model_tokens, "max_num_batched_tokens": profile.max_batched_tokens,
        "tensor_parallel_size": profile.ranks, "disable_log_stats": False,
        "num_gpu_blocks_override": profile.blocks,
        "kv_cache_memory_bytes": 2 * profile.kv_bytes_per_token * profile.block_tokens * profile.blocks,
        "prefix_caching_hash_algo": "sha256_cbor",
        "distributed_executor_backend": "uni" if profile.ranks == 1 else "mp",
    }  # fmt: skip
    llm = LLMEngine.from_engine_args(EngineArgs(**(defaults | options)), stat_loggers=[Figures])
    try:
        assert llm.logger_manager is not None
        (figures,) = (each for each in llm.logger_manager.stat_loggers if isinstance(each, Figures))
        running = PacedEngine(profile, llm, figures)
        yield running
        if check:
            running.check()
    finally:
        llm.engine_core.shutdown()


def prepare_environment(*, separate: bool, ranks: int = 1) -> None:
    """Set what vLLM reads from the environment, in this process and in those that it starts."""
    os.environ.update(environment())
    if ranks > 1:
        cores = sorted(os.sched_getaffinity(0))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if separate else "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    for path in (str(ROOT), str(CONNECTOR), str(PLUGIN)):
        if path not in sys.path:
            sys.path.append(path)
    paths = [str(ROOT), str(CONNECTOR), str(PLUGIN), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    importlib.invalidate_caches()
