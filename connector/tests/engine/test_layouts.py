"""Byte for byte, for every layout of KV memory that is served, from every tier.

Each model is run cold; then its blocks come from memory, from Redis into another engine, and from disk after a restart. In
between KV memory is overwritten with a pattern, so a load that does nothing, or writes elsewhere, cannot pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm import TokensPrompt

from connector.tests.engine import models
from connector.tests.engine.harness import TINY, Engine, empty, remote, running, tokens
from kvpool_connector.transfer import Kind, Tier
from kvpool_connector.vllm import support
from testkit.servers import KeyValueServer

pytestmark = pytest.mark.timeout(300)

PROMPT_TOKENS = 700
Snapshot = dict[tuple[bytes, int], bytes]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A model and what is known about its KV memory."""

    make: Callable[..., Any]
    full: int
    """KV groups with full attention."""
    windows: int
    """KV groups with a sliding window: loaded as far as it reaches."""
    hit: int
    """Tokens of the prompt that a second request finds."""
    text: bool = True
    """Its text behind a hit is right. vLLM's MLA on a CPU without AMX computes another one, with or without a connector: it
    is refused there, and with the refusal lifted the bytes are looked at."""


LAYOUTS = {
    "full attention": Layout(models.llama, 1, 0, 640),  # whole chunks of 128 tokens
    "windows and full attention": Layout(models.gemma3, 1, 2, 672),
    "windows, sinks and full attention": Layout(models.gpt_oss, 1, 1, 672),
    "windows": Layout(models.mistral, 0, 1, 672),
    "MLA": Layout(models.deepseek_v2, 1, 0, 640, text=False),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "sinks" in name else name for name in LAYOUTS]
)
def test_every_tier_gives_back_what_was_computed(
    name: str, store: KeyValueServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three engines, one after the other: what the second and third know about the first is in Redis or on disk."""
    layout = LAYOUTS[name]
    if not layout.text:
        monkeypatch.setattr(support, "check", lambda facts: None)
    empty(store)
    model = models.save(layout.make, tmp_path / "model")
    disk = {"path": str(tmp_path / "disk"), "size": "128Mi"}
    tiers: dict[str, Any] = {"cpu": {"size": "64Mi"}}
    shared = {"remote": remote(store, tmp_path), "admission": "always"}
    prompt = tokens(1, PROMPT_TOKENS, models.VOCABULARY)

    with running(model, {"tiers": tiers | {"disk": disk}} | shared, **TINY) as engine:
        assert len(engine._pages) == layout.full + layout.windows
        text, cached = engine.generate(prompt, tokens=16)
        assert cached == 0
        assert len(set(text)) > 4, "a text that says nothing about the blocks"
        engine.settle()
        computed = engine.snapshot(Kind.STORE)
        engine.forget()
        assert_loaded(engine, prompt, Tier.MEMORY, layout, computed, text)
        engine.assert_nothing_is_left()

    with running(model, {"tiers": tiers} | shared, **TINY) as engine:
        assert_loaded(engine, prompt, Tier.REMOTE, layout, computed, text)
        engine.assert_nothing_is_left()

    empty(store)
    with running(model, {"tiers": tiers | {"disk": disk}} | shared, **TINY) as engine:
        assert_loaded(engine, prompt, Tier.DISK, layout, computed, text)
        engine.assert_nothing_is_left()


def assert_loaded(
    engine: Engine, prompt: TokensPrompt, tier: Tier, layout: Layout, computed: Snapshot, text: list[int]
) -> None:
    """A request finds its blocks in the tier; they are what was computed, and nothing else was written."""
    engine.overwrite()
    again, cached = engine.generate(prompt, tokens=16)
    (load,) = engine.loads()
    counts = {Tier.DISK: len(load.from_disk), Tier.REMOTE: len(load.from_remote)}
    assert counts == {each: len(load.keys) if each is tier else 0 for each in counts}
    loaded = engine.snapshot(Kind.LOAD)
    blocks = (layout.full * layout.hit + layout.windows * models.WINDOW) // engine.block_tokens
    assert (cached, len(loaded)) == (layout.hit, blocks)
    assert loaded.keys() <= computed.keys()
    assert not [key for key, data in loaded.items() if data != computed[key]]
    assert again == text or not layout.text

    targets = {block for chunk in engine.chunks(Kind.LOAD).values() for block in chunk.blocks}
    of_the_tail = (layout.full + layout.windows) * math.ceil((PROMPT_TOKENS - layout.hit + 16) / engine.block_tokens)
    null_block = 1
    assert len(engine.written() - targets) <= of_the_tail + null_block
