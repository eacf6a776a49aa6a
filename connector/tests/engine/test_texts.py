"""Byte for byte, with a real model and in every number type: a load puts into KV memory what the model had computed there.

The KV tensors are overwritten with a pattern in between, so a load that does nothing cannot pass. Greedy texts are those of
vLLM alone behind its own prefix cache (docs/texts.md), but alone they are a weak check: text of so small a model survives much.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from connector.tests.engine.harness import (
    PATTERN,
    Engine,
    Said,
    assert_right_texts,
    empty,
    prompt,
    remote,
    running,
)
from kvpool_connector.transfer import Kind
from testkit.host import DTYPES, Dtype
from testkit.servers import KeyValueServer

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("dtype", DTYPES)
def test_loads_from_memory_and_from_redis(dtype: Dtype, model: Path, store: KeyValueServer, tmp_path: Path) -> None:
    """Cold; from the memory tier; from Redis after the tier was emptied. KV memory is overwritten each time."""
    empty(store)
    kvpool = {"tiers": {"cpu": {"size": "256Mi"}}, "remote": remote(store, tmp_path), "admission": "always"}
    with running(str(model), kvpool, dtype=dtype) as engine:
        said = [_computed(engine)]
        snapshot = engine.snapshot(Kind.STORE)
        assert len(snapshot) >= 5
        said += [_loaded(engine, source, snapshot) for source in ("memory", "redis")]
    assert_right_texts(str(model), said, dtype)


def _computed(engine: Engine) -> Said:
    text, cached = engine.generate(prompt(1))
    assert cached == 0
    engine.settle()
    return prompt(1), cached, text


def _loaded(engine: Engine, source: str, snapshot: dict[tuple[bytes, int], bytes]) -> Said:
    stored = engine.chunks(Kind.STORE).values() or engine.chunks(Kind.LOAD).values()
    engine.forget(tiers=source == "redis")
    engine.overwrite()
    assert all(set(data) == {PATTERN} for chunk in stored for data in engine.blocks_of(chunk).values())
    text, cached = engine.generate(prompt(1))
    assert all(bool(load.from_remote) == (source == "redis") for load in engine.loads()), source
    loaded = engine.snapshot(Kind.LOAD)
    assert loaded.keys() <= snapshot.keys()
    assert cached == len(engine.chunks(Kind.LOAD)) * engine.chunk_tokens
    assert len(loaded) >= 5
    different = [key for key, data in loaded.items() if data != snapshot[key]]
    assert not different, source
    return prompt(1), cached, text
