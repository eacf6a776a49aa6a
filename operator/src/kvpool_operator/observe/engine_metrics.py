"""What an engine in a user's Pod says of kvpool, on vLLM's own ``/metrics``.

The connector's plug-in sets the gauge ``kvpool_engine_state{state, reason}`` when vLLM has parsed its
arguments (``kvpool_connector/vllm/engine_state.py``), which is before the engine serves. It tells
of the start and stays the same as long as the process runs.

Whoever made the Pod chose what is answered here. So little is read, for a short time; a state is
one of three words, and of a reason only what can be printed is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from kvpool_operator.kube import ApiError
from kvpool_operator.observe.dial import Dialer
from kvpool_operator.status.observed import EngineAddress, EngineSays, EngineState

_GAUGE = "kvpool_engine_state"
_WORDS = {str(state): state for state in (EngineState.ACTIVE, EngineState.SKIPPED, EngineState.DISABLED)}
_OURS = ("kvpool_", "kvpool:")
"""How the names of the connector's metrics begin."""
_VLLM = "vllm:"
_PATIENCE = aiohttp.ClientTimeout(total=3.0)
_HEADERS = {"Accept-Encoding": "identity"}
_LONGEST_TEXT = 4 << 20
"""In bytes; vLLM's metrics have some hundred thousand."""
_LONGEST_REASON = 200
"""In characters, as in the connector."""


async def ask(address: EngineAddress, dial: Dialer) -> EngineSays | None:
    """Return what the engine behind an address says; None if that is not known yet.

    Nothing is known where nobody answers, where the answer is none of vLLM's, and where the address
    is one that the operator does not ask. A Pod in the network of its node may have such an address.
    """
    try:
        if await dial.refuses(address.host):
            return None
    except (ApiError, TimeoutError):
        return None
    host = address.host
    named = f"[{host}]" if ":" in host else host
    try:
        async with (
            # Not decompressed: a small answer could become a very large one.
            aiohttp.ClientSession(timeout=_PATIENCE, auto_decompress=False, headers=_HEADERS) as session,
            session.get(f"http://{named}:{address.port}/metrics", allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                return None
            text = await answer.content.read(_LONGEST_TEXT)
            while len(text) < _LONGEST_TEXT and (more := await answer.content.readany()):
                text += more
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return await asyncio.to_thread(said, text[:_LONGEST_TEXT].decode(errors="replace"))


def said(text: str) -> EngineSays | None:
    """Return what an engine's metrics say of kvpool; None if they are none of vLLM's, or unreadable."""
    lines = text.split("\n")
    try:
        for sample in _samples(lines):
            state = _WORDS.get(sample.get("state", ""))
            if state is not None:
                return EngineSays(state, _printable(sample.get("reason", "")))
    except ValueError:
        return None
    # An older connector has other metrics and no such gauge: whether it serves is not known.
    if any(line.startswith(_OURS) for line in lines) or not any(line.startswith(_VLLM) for line in lines):
        return None
    return EngineSays(EngineState.ABSENT, "")


def _samples(lines: list[str]) -> Iterator[dict[str, str]]:
    """Yield the labels of each sample of the gauge that is 1.

    Raises:
        ValueError: a line cannot be read.
    """
    chosen = "\n".join(line for line in lines if line.startswith(_GAUGE + "{"))
    for family in text_string_to_metric_families(chosen + "\n"):
        for sample in family.samples:
            if sample.value == 1:
                yield sample.labels


def _printable(reason: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in reason)[:_LONGEST_REASON]
