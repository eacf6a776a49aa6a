"""Real vLLMs of a pool on the node: where they are, what they count, and prompts that make several blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from e2e.demo.stage import ENGINE_ARGUMENTS
from e2e.demo.steps import DOCUMENT
from e2e.stores.stage import Pool
from testkit.engine import MODEL_NAME
from testkit.engine_facts import metrics_page, total
from testkit.host import chosen_dtype
from testkit.http_client import Answer, ask
from testkit.oracle import Alone, Sample, judge


def prompt(number: int) -> str:
    """Real text; no two numbers share a block."""
    return f"Text {number}.\n\n{DOCUMENT.read_text()[:5000]}\n\nAnswer in one sentence: what is it about?"


def urls(pool: Pool) -> list[str]:
    """Of the engines, by the names of their Pods."""
    return [f"http://{pod['status']['podIP']}:8000" for _, pod in sorted(pool.pods("engine").items())]


def greet(url: str) -> None:
    """So that what all chats begin with, and the engine's first steps, are nobody's hit or miss."""
    ask(url, MODEL_NAME, "Say hello.")


def answer(url: str, number: int) -> Answer:
    """To a prompt."""
    return ask(url, MODEL_NAME, prompt(number))


def chunks(url: str, what: str, tier: str) -> float:
    """A counter of a tier: ``written`` or ``loaded``."""
    return total(metrics_page(url), f"kvpool:{what}_chunks_total", tier=tier)


def assert_right_texts(answers: Sequence[tuple[int, Answer]]) -> None:
    """Judge the texts of engines in Pods, each with the number of its prompt; see :mod:`testkit.oracle`."""
    samples = [Sample(f"prompt {number}", prompt(number), answered) for number, answered in answers]

    def alone() -> Alone:
        return Alone(Path(tempfile.mkdtemp(prefix="kvpool-oracle-")), chosen_dtype(), ENGINE_ARGUMENTS)

    assert judge(samples, chosen_dtype(), alone).faults == ()
