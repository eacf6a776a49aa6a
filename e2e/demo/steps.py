"""The six steps, played on any stage. Every number is measured here; nothing is assumed."""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from e2e.demo.stage import BLOCK_TOKENS, ENGINES, EngineName, Stage
from testkit.http_client import Answer, ask, reset_own_cache, reset_tiers
from testkit.servers import wait_until

DOCUMENT = Path(__file__).with_name("document.txt")
QUESTIONS = (
    "How old must a Representative be?",
    "How long is a Senator chosen for?",
    "Who is President of the Senate?",
    "Who has the sole power of impeachment?",
    "Where must bills for raising revenue originate?",
)
TRIES_AFTER_RETURN = 3
"""An engine leaves a lost store alone for up to 3 s between probes."""


@dataclasses.dataclass
class Step:
    """One row of the table."""

    key: str
    title: str
    source: str
    answers: dict[int, Answer] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Median time to first token."""
        return statistics.median(answer.ttft_s for answer in self.answers.values())

    @property
    def hit_fraction(self) -> float:
        """Prompt tokens from a cache over those in whole blocks (the last token is always computed)."""
        whole = sum((answer.prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS for answer in self.answers.values())
        return sum(answer.cached_tokens for answer in self.answers.values()) / whole


def prompts() -> list[str]:
    """One prompt of 3000 and more tokens per question; copies differ in their first line, so that each is cold once."""
    document = DOCUMENT.read_text()
    return [
        f"Copy {number} of this document.\n\n{document}\n\nAnswer in one sentence: {question}"
        for number, question in enumerate(QUESTIONS, start=1)
    ]


class Play:
    """Runs the steps in order and keeps their answers."""

    def __init__(self, stage: Stage, say: Callable[[str], None]) -> None:
        self._stage, self._say = stage, say
        self._prompts = prompts()
        self.steps: list[Step] = []

    def run(self) -> list[Step]:
        """All six."""
        for engine in ENGINES:
            self._ask(engine, "Say hello.")
        self._first_three()
        self._after_restart()
        self._store_lost()
        self._store_back()
        return self.steps

    def _first_three(self) -> None:
        """Per prompt: cold on A, again on A from its memory tier, then on B from the store. Interleaved, so that a slow minute of
        the machine falls on all three."""
        cold = self._step("cold_s", "1  cold, engine A", "computed")
        memory = self._step("cpu_tier_s", "2  A, its prefix cache reset", "memory tier")
        other = self._step("other_engine_s", "3  engine B, never saw it", "store")
        for number in range(len(self._prompts)):
            self._note(cold, number, "A")
            self._stored(number + 1)
            reset_own_cache(self._stage.url("A"))
            self._note(memory, number, "A")
            self._note(other, number, "B")

    def _after_restart(self) -> None:
        self._say("engine A is deleted and comes back")
        self._stage.restart_a()
        self._ask("A", "Say hello.")
        step = self._step("restarted_s", "4  A, deleted and back", "store")
        for number in range(len(self._prompts)):
            self._note(step, number, "A")

    def _store_lost(self) -> None:
        """The store is killed while A waits for it and B serves; then a request that finds it gone from the start."""
        step = self._step("store_lost_s", "5  A, store killed in mid-traffic", "computed")
        reset_tiers(self._stage.url("A"))
        busy = threading.Thread(target=lambda: self._ask("B", self._prompts[0]))
        killer = threading.Timer(0.05, self._stage.kill_store)
        busy.start()
        killer.start()
        self._note(step, 0, "A")
        killer.join()
        busy.join()
        reset_tiers(self._stage.url("A"))
        self._note(step, 1, "A")

    def _store_back(self) -> None:
        """The store is empty when it returns. A still has blocks in memory: using them brings them back to the store, and B,
        whose memory is emptied, finds them there."""
        self._say("the store comes back, empty")
        self._stage.return_store()
        step = self._step("store_back_s", "6  B, store back, memory emptied", "store")
        wait_until("engine A puts its blocks into the store again", self._restored, timeout_s=60, poll_s=0.5)
        for _ in range(TRIES_AFTER_RETURN):
            reset_tiers(self._stage.url("B"))
            self._note(step, 1, "B")
            if step.hit_fraction > 0.5:
                break
            self._say("engine B has not noticed the store's return yet: it probes every few seconds")

    def _restored(self) -> bool:
        self._ask("A", self._prompts[1])
        return self._stage.parts() >= self._blocks(1)

    # ---- one request -------------------------------------------------------------------------------------

    def _step(self, key: str, title: str, source: str) -> Step:
        self.steps.append(Step(key, title, source))
        return self.steps[-1]

    def _note(self, step: Step, number: int, engine: EngineName) -> None:
        answer = self._ask(engine, self._prompts[number])
        step.answers[number] = answer
        self._say(
            f"{step.title:36} prompt {number + 1}: first token {answer.ttft_s:7.3f} s, "
            f"{answer.cached_tokens:4} of {answer.prompt_tokens} tokens cached"
        )

    def _ask(self, engine: EngineName, prompt: str) -> Answer:
        return ask(self._stage.url(engine), self._stage.model, prompt)

    def _blocks(self, prompt_count: int) -> int:
        """Whole blocks of the first prompts, as far as they were measured."""
        answers = [self.steps[0].answers[number] for number in sorted(self.steps[0].answers)][:prompt_count]
        return sum((answer.prompt_tokens - 1) // BLOCK_TOKENS for answer in answers)

    def _stored(self, prompt_count: int) -> None:
        """Blocks of the first prompts have reached the store. Copies share a first block with nobody, so they add up."""
        expected = self._blocks(prompt_count)
        wait_until(f"{expected} blocks in the store", lambda: self._stage.parts() >= expected, timeout_s=30, poll_s=0.1)


def texts_identical(steps: Sequence[Step]) -> bool:
    """Every prompt has one text, whatever its blocks came from."""
    texts: dict[int, set[str]] = {}
    for step in steps:
        for number, answer in step.answers.items():
            texts.setdefault(number, set()).add(answer.text)
    return all(len(of_prompt) == 1 and "" not in of_prompt for of_prompt in texts.values())


def stopwatch() -> Callable[[str], None]:
    """A line with the seconds since the demo began."""
    began = time.monotonic()
    return lambda line: print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)
