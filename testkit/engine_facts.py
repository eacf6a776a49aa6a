"""What an engine says of itself on its ``/metrics``: nothing that depends on model, type or processor is assumed of it."""

from __future__ import annotations

import dataclasses
import re
import urllib.request

_SAMPLE = re.compile(r"^(kvpool[:_]\w+|vllm:\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True)
class EngineFacts:
    """One engine's view of its chunks."""

    chunk_tokens: int
    """Hits are counted in whole chunks of so many tokens."""
    chunk_parts: int
    """Parts of one chunk in a shared store: one for each KV group and rank."""
    identity: str
    """Digest of what a stored part depends on; engines that differ in it share nothing."""

    def whole_chunks(self, prompt_tokens: int) -> int:
        """Return how many chunks of a prompt can be hit: the last token is always computed."""
        return (prompt_tokens - 1) // self.chunk_tokens

    def cacheable_tokens(self, prompt_tokens: int) -> int:
        """Return the tokens of a prompt that are in whole chunks."""
        return self.whole_chunks(prompt_tokens) * self.chunk_tokens

    def parts(self, prompt_tokens: int) -> int:
        """Return how many parts a prompt makes in a shared store."""
        return self.whole_chunks(prompt_tokens) * self.chunk_parts


def facts_of(url: str) -> EngineFacts:
    """Ask an engine that has answered a request before: its figures come with its first step.

    Raises:
        RuntimeError: it has no figures of kvpool.
        OSError: it does not answer.
    """
    page = metrics_page(url)
    tokens = total(page, "kvpool:chunk_tokens")
    parts = total(page, "kvpool:chunk_parts")
    digests = {labels["digest"] for labels, value in samples(page, "kvpool:identity_info") if value == 1}
    if not tokens or not parts or len(digests) != 1:
        raise RuntimeError(
            f"{url}/metrics has no figures of kvpool's chunks: the engine runs without the connector, or was asked nothing yet"
        )
    return EngineFacts(int(tokens), int(parts), digests.pop())


def metrics_page(url: str) -> str:
    """Return an engine's metrics in Prometheus' text format.

    Raises:
        OSError: it does not answer.
    """
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:  # noqa: S310 - an engine of ours
        text: str = page.read().decode()
    return text


def samples(page: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each series of a metric, which is named as on the page."""
    found = []
    for line in page.splitlines():
        sample = _SAMPLE.match(line)
        if sample is not None and sample[1] == name:
            found.append((dict(_LABEL.findall(sample[2] or "")), float(sample[3])))
    return found


def total(page: str, name: str, **labels: str) -> float:
    """Return the sum over those series of a metric that have these labels."""
    return sum(value for have, value in samples(page, name) if labels.items() <= have.items())
