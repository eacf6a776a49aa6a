"""Real vLLMs of a pool on the node: where they are, what they count, and prompts that make several blocks."""

from __future__ import annotations

import re
import urllib.request

from e2e.demo.stage import BLOCK_TOKENS
from e2e.demo.steps import DOCUMENT
from e2e.stores.stage import Pool
from testkit.engine import MODEL_NAME
from testkit.http_client import Answer, ask


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


def whole_blocks(answered: Answer) -> int:
    """Blocks of its prompt that can be stored."""
    return (answered.prompt_tokens - 1) // BLOCK_TOKENS


def chunks(url: str, what: str, tier: str) -> float:
    """A counter of a tier: ``written`` or ``loaded``."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:  # noqa: S310
        text = page.read().decode()
    found = re.findall(rf'^kvpool:{what}_chunks_total{{[^}}]*tier="{tier}"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))
