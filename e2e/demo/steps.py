"""The demo's steps, played on any stage. Every number is measured here; nothing is assumed of host or engines."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.demo.stage import ENGINES, EngineName, Stage
from testkit.engine_facts import facts_of
from testkit.host import Dtype, is_fast
from testkit.http_client import Answer, ask, reset_own_cache, reset_tiers
from testkit.oracle import Sample
from testkit.servers import wait_until

DOCUMENT = Path(__file__).with_name("document.txt")
SHORT_CHARACTERS = 3000
"""Of the document in a short prompt."""
QUESTIONS = (
    "How old must a Representative be?",
    "How long is a Senator chosen for?",
    "Who is President of the Senate?",
    "Who has the sole power of impeachment?",
    "Where must bills for raising revenue originate?",
)
ROUNDS = 5
"""How often the store is killed under an engine that just started, and again under one that has computed."""
FULL_HIT = 0.99
"""A smaller share of the tokens that could come from a cache is no full hit."""
TRIES_AFTER_RETURN = 20
"""An engine leaves a lost store alone for up to 3 s between probes."""
STEP_TIMEOUT_S = 120.0
"""Bound on anything that a step waits for, on a host that is busy with other work."""


@dataclasses.dataclass
class Step:
    """One row of the table."""

    key: str
    title: str
    source: str
    answers: list[tuple[int, Answer]] = dataclasses.field(default_factory=list)
    """Number of the prompt, and what came."""
    cacheable: list[int] = dataclasses.field(default_factory=list)
    """For each answer: tokens of its prompt that are in whole chunks, so that a cache may hold them."""
    computed_s: list[float] = dataclasses.field(default_factory=list)
    """For each answer, where the step bounds what a dead store costs: the first token of a new prompt
    that engine B computed a moment before. A host that other work slows down slows down both."""

    @property
    def seconds(self) -> float:
        """The median time to first token."""
        return statistics.median(answer.ttft_s for _, answer in self.answers)

    @property
    def hit_fractions(self) -> list[float]:
        """For each answer: prompt tokens that came from a cache over those that a cache may hold."""
        pairs = zip(self.answers, self.cacheable, strict=True)
        return [answer.cached_tokens / most for (_, answer), most in pairs]

    @property
    def hit_fraction(self) -> float:
        """The median, as for times. On a machine that is busy with other work a store may stand still
        for longer than a fetch waits, and one prompt is then computed from there on, by design."""
        return statistics.median(self.hit_fractions)


def prompts(dtype: Dtype, *, short: bool = False) -> list[str]:
    """Return a prompt of 3000 and more tokens per question.

    Prompts are short, some hundred tokens, where that is asked for, and where this host computes the type so slowly that
    a whole document would take a minute. Copies differ in their first line, so that each is cold once.
    """
    document = DOCUMENT.read_text()
    if short or not is_fast(dtype):
        document = document[:SHORT_CHARACTERS]
    return [
        f"Copy {number} of this document.\n\n{document}\n\nAnswer in one sentence: {question}"
        for number, question in enumerate(QUESTIONS, start=1)
    ]


class Play:
    """Runs the steps in order and keeps their answers."""

    def __init__(self, stage: Stage, say: Callable[[str], None], asked: Sequence[str], rounds: int = ROUNDS) -> None:
        """Args:
        asked: the prompts, see :func:`prompts`.
        rounds: how often the store is killed in each of the two steps that kill it; at most once for each prompt.
        """
        self._stage, self._say, self._prompts, self._rounds = stage, say, asked, rounds
        self.steps: list[Step] = []
        self._new_prompts = 0

    def run(self) -> list[Step]:
        """Play all steps.

        Raises:
            TimeoutError: something did not happen that the steps wait for.
            RuntimeError, OSError: an engine did not answer.
        """
        for engine in ENGINES:
            self._ask(engine, "Say hello.")
        self._facts = facts_of(self._stage.url("A"))
        self._say(
            f"chunks of {self._facts.chunk_tokens} tokens in {self._stage.dtype}; identity {self._facts.identity}"
        )
        if (other := facts_of(self._stage.url("B"))) != self._facts:
            raise RuntimeError(f"the engines cannot share a store: A has {self._facts}, B has {other}")
        self._first_four()
        self._after_restart()
        self._store_killed()
        self._store_back()
        return self.steps

    def samples(self) -> list[Sample]:
        """Return all answers for :func:`testkit.oracle.judge`."""
        return [
            Sample(f"{step.title}, prompt {number + 1}", self._prompts[number], answer)
            for step in self.steps
            for number, answer in step.answers
        ]

    def _first_four(self) -> None:
        """Per prompt: cold on A, again on A from its device, then from its memory tier, then on B from the store.

        Interleaved, so that a slow minute of the machine falls on all four.
        """
        cold = self._step("cold_s", "1  cold, engine A", "computed")
        device = self._step("device_s", "   A again", "prefix cache")
        memory = self._step("cpu_tier_s", "2  A, its prefix cache reset", "memory tier")
        other = self._step("other_engine_s", "3  engine B, never saw it", "store")
        expected = self._stage.parts()
        for number in range(len(self._prompts)):
            expected += self._facts.parts(self._note(cold, number, "A").prompt_tokens)
            self._wait_for_parts(expected)
            self._note(device, number, "A")
            reset_own_cache(self._stage.url("A"))
            self._note(memory, number, "A")
            self._note(other, number, "B")

    def _after_restart(self) -> None:
        self._say("engine A is deleted and comes back")
        self._restart_a()
        step = self._step("restarted_s", "4  A, deleted and back", "store")
        for number in range(len(self._prompts)):
            self._note(step, number, "A")

    def _store_killed(self) -> None:
        """Each round kills the store twice in mid-traffic: under an A that has computed no prompt yet, and under one that has.

        After that, a request that finds the store gone from the start. What computing takes at that time is seen on B, by
        new prompts, shortly before each kill.
        """
        fresh = self._step("store_lost_fresh_s", "5  store killed, A just started", "computed")
        step = self._step("store_lost_s", "6  store killed in mid-traffic", "computed")
        gone = self._step("store_gone_s", "7  store gone for a while", "computed")
        for number in range(self._rounds):
            if number:
                self._say("the store comes back, B fills it, and engine A starts again")
                self._refilled(number)
                self._restart_a()
            self._killed_under_a(fresh, number)
            self._refilled(number)
            self._a_loads(number)
            self._killed_under_a(step, number)
            reset_tiers(self._stage.url("A"))
            self._note(gone, number, "A")
            gone.computed_s.append(step.computed_s[-1])

    def _store_back(self) -> None:
        """The store is empty when it returns. A still has a prompt in memory: using it brings it back to the store, and B, whose
        memory is emptied, finds it there."""
        self._say("the store comes back, empty")
        number = len(self._prompts) - 1
        self._stage.return_store()
        self._fill_store("A", number)
        step = self._step("store_back_s", "8  B, store back, memory emptied", "store")
        for last in reversed(range(TRIES_AFTER_RETURN)):
            reset_tiers(self._stage.url("B"))
            answer = self._ask("B", self._prompts[number])
            if self._is_full_hit(answer) or not last:
                self._keep(step, number, answer)
                return
            self._say("engine B has not noticed the store's return yet: it probes every few seconds")

    # ---- parts of the steps ------------------------------------------------------------------------------

    def _restart_a(self) -> None:
        self._stage.restart_a()
        self._ask("A", "Say hello.")

    def _killed_under_a(self, step: Step, number: int) -> None:
        """Kill the store while A answers one request after the other from it.

        The first request that the store could not serve is the one that counts. Killing takes Kubernetes some tenths of a
        second, in which A has many hits, so the kill falls anywhere in a request or between two.
        """
        step.computed_s.append(self._ask("B", self._new_prompt()).ttft_s)
        end = time.monotonic() + STEP_TIMEOUT_S
        with ThreadPoolExecutor(1) as beside:
            killed = beside.submit(self._stage.kill_store)
            while time.monotonic() < end:
                reset_tiers(self._stage.url("A"))
                answer = self._ask("A", self._prompts[number])
                if not self._is_full_hit(answer):
                    break
            killed.result()
        if self._is_full_hit(answer):
            raise TimeoutError("engine A has hits in a store that was killed")
        self._keep(step, number, answer)

    def _refilled(self, number: int) -> None:
        """The store is back and has a prompt, from B's memory."""
        self._stage.return_store()
        self._fill_store("B", number)

    def _fill_store(self, engine: EngineName, number: int) -> None:
        """An engine that holds a prompt in memory brings it back to an empty store when the prompt is used."""

        def filled() -> bool:
            expected = self._facts.parts(self._ask(engine, self._prompts[number]).prompt_tokens)
            return self._stage.parts() >= expected

        wait_until(f"engine {engine} puts a prompt into the store again", filled, STEP_TIMEOUT_S, poll_s=0.5)

    def _a_loads(self, number: int) -> None:
        """A has noticed that the store is back."""

        def loads() -> bool:
            reset_tiers(self._stage.url("A"))
            return self._is_full_hit(self._ask("A", self._prompts[number]))

        wait_until("engine A loads from the store again", loads, STEP_TIMEOUT_S, poll_s=0.5)

    # ---- one request -------------------------------------------------------------------------------------

    def _step(self, key: str, title: str, source: str) -> Step:
        self.steps.append(Step(key, title, source))
        return self.steps[-1]

    def _note(self, step: Step, number: int, engine: EngineName) -> Answer:
        answer = self._ask(engine, self._prompts[number])
        self._keep(step, number, answer)
        return answer

    def _keep(self, step: Step, number: int, answer: Answer) -> None:
        step.answers.append((number, answer))
        step.cacheable.append(self._facts.cacheable_tokens(answer.prompt_tokens))
        self._say(
            f"{step.title:36} prompt {number + 1}: first token {answer.ttft_s:7.3f} s, "
            f"{answer.cached_tokens:4} of {answer.prompt_tokens} tokens cached"
        )

    def _new_prompt(self) -> str:
        """Return a prompt as long as the others that no engine has seen: its first words are new."""
        self._new_prompts += 1
        return f"New prompt {self._new_prompts}. {self._prompts[0]}"

    def _ask(self, engine: EngineName, prompt: str) -> Answer:
        return ask(self._stage.url(engine), self._stage.model, prompt)

    def _is_full_hit(self, answer: Answer) -> bool:
        return answer.cached_tokens >= FULL_HIT * self._facts.cacheable_tokens(answer.prompt_tokens)

    def _wait_for_parts(self, expected: int) -> None:
        """Wait until the store has so many parts. Copies share a first chunk with nobody, so those of the prompts add up."""
        wait_until(
            f"{expected} parts in the store", lambda: self._stage.parts() >= expected, STEP_TIMEOUT_S, poll_s=0.1
        )


def stopwatch() -> Callable[[str], None]:
    """Return a function that prints a line with the seconds since now."""
    began = time.monotonic()
    return lambda line: print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)


def by_key(steps: Sequence[Step]) -> dict[str, Step]:
    """Return the steps by their keys."""
    return {step.key: step for step in steps}
