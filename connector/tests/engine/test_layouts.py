"""Byte for byte, for every layout of KV memory that is served, from every tier.

Each model is run cold; then its blocks come from memory, from Redis into another engine, and from disk after a restart. In
between KV memory is overwritten with a pattern, so a load that does nothing, or writes elsewhere, cannot pass. In every number
type, the texts are those of vLLM alone behind its own prefix cache (docs/texts.md).
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
from connector.tests.engine.harness import TINY, Engine, Said, assert_right_texts, empty, remote, running, tokens
from kvpool_connector.transfer import Kind, Tier
from kvpool_connector.vllm import support
from testkit import host
from testkit.host import Dtype
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
    mla: bool = False
    """What vLLM can do with it depends on the CPU: one number type, and on a CPU without AMX no right text behind a computed
    prefix, with or without a connector. There kvpool refuses it; with the refusal lifted the bytes are looked at."""

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """The number types that vLLM runs it in on this host."""
        return (host.mla_dtype(),) if self.mla else host.DTYPES

    @property
    def has_texts(self) -> bool:
        """Whether vLLM says the right thing behind a prefix."""
        return not self.mla or host.continues_mla_prefixes()


LAYOUTS = {
    "full attention": Layout(models.llama, 1, 0),
    "windows and full attention": Layout(models.gemma3, 1, 2),
    "windows, sinks and full attention": Layout(models.gpt_oss, 1, 1),
    "windows": Layout(models.mistral, 0, 1),
    "MLA": Layout(models.deepseek_v2, 1, 0, mla=True),
}
CASES = [
    # The number type is no matter of windows: every run has both with full attention only. Windows alone are a part of
    # windows beside full attention.
    pytest.param(
        name,
        dtype,
        marks=()
        if not layout.windows or (name == "windows and full attention" and dtype == "float32")
        else pytest.mark.slow,
    )
    for name, layout in LAYOUTS.items()
    for dtype in layout.dtypes
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_tier_gives_back_what_was_computed(
    name: str, dtype: Dtype, store: KeyValueServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three engines, one after the other: what the second and third know about the first is in Redis or on disk."""
    layout = LAYOUTS[name]
    options = TINY | {"dtype": dtype}
    if not layout.has_texts:
        monkeypatch.setattr(support, "check", lambda facts: None)
    empty(store)
    model = models.save(layout.make, tmp_path / "model")
    disk = {"path": str(tmp_path / "disk"), "size": "128Mi"}
    tiers: dict[str, Any] = {"cpu": {"size": "64Mi"}}
    shared = {"remote": remote(store, tmp_path), "admission": "always"}
    prompt = tokens(1, PROMPT_TOKENS, models.VOCABULARY)

    said: list[Said] = []
    with running(model, {"tiers": tiers | {"disk": disk}} | shared, **options) as engine:
        assert len(engine._pages) == layout.full + layout.windows
        text, cached = engine.generate(prompt, tokens=16)
        assert cached == 0
        assert len(set(text)) > 4, "a text that says nothing about the blocks"
        said.append((prompt, 0, text))
        engine.settle()
        computed = engine.snapshot(Kind.STORE)
        engine.forget()
        said.append(load(engine, prompt, Tier.MEMORY, layout, computed))
        engine.assert_nothing_is_left()

    with running(model, {"tiers": tiers} | shared, **options) as engine:
        said.append(load(engine, prompt, Tier.REMOTE, layout, computed))
        engine.assert_nothing_is_left()

    empty(store)
    with running(model, {"tiers": tiers | {"disk": disk}} | shared, **options) as engine:
        said.append(load(engine, prompt, Tier.DISK, layout, computed))
        engine.assert_nothing_is_left()

    if layout.has_texts:
        assert_right_texts(model, said, **options)


def load(engine: Engine, prompt: TokensPrompt, tier: Tier, layout: Layout, computed: Snapshot) -> Said:
    """A request finds its blocks in the tier; they are what was computed, and nothing else was written."""
    hit = engine.cacheable_tokens(PROMPT_TOKENS)
    engine.overwrite()
    text, cached = engine.generate(prompt, tokens=16)
    (load,) = engine.loads()
    counts = {Tier.DISK: len(load.from_disk), Tier.REMOTE: len(load.from_remote)}
    assert counts == {each: len(load.keys) if each is tier else 0 for each in counts}
    loaded = engine.snapshot(Kind.LOAD)
    blocks = (layout.full * hit + layout.windows * models.WINDOW) // engine.block_tokens
    assert (cached, len(loaded)) == (hit, blocks)
    assert loaded.keys() <= computed.keys()
    assert not [key for key, data in loaded.items() if data != computed[key]]

    targets = {block for chunk in engine.chunks(Kind.LOAD).values() for block in chunk.blocks}
    of_the_tail = (layout.full + layout.windows) * math.ceil((PROMPT_TOKENS - hit + 16) / engine.block_tokens)
    null_block = 1
    assert len(engine.written() - targets) <= of_the_tail + null_block
    return prompt, cached, text
