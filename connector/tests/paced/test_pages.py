"""The pattern's words lie in what the connector copies of a block, in vLLM's layouts of KV memory."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from connector.tests.engine.layouts import APART, BLOCKS, LAYOUTS, NAMES, TOKENS, memory
from testkit.paced.pattern import KvMemory, Share, prefix_hashes
from testkit.paced.profiles import PROFILES
from testkit.paced.runner import _pages, _words_of

UNEVEN = {"MLA", "MLA, padded"}
"""Layouts of these tests whose tokens are no whole number of words."""


@pytest.mark.parametrize("name", [name for name in NAMES if name != APART and name not in UNEVEN])
def test_round_trip(name: str) -> None:
    """Blocks that are copied out, spoilt and copied in are right again."""
    kv = memory(name)
    first = kv.layers[0][0]
    profile = dataclasses.replace(PROFILES["llama-8b"], stamps=1)
    groups = []
    for (layers, spec), views in zip(LAYOUTS[name][1], kv.layers, strict=True):
        group: Any = SimpleNamespace(kv_cache_spec=spec, layer_names=layers)
        groups.append(_pages(group, dict(zip(layers, views, strict=True)), BLOCKS, profile, rank=0))
    words = KvMemory(_words_of(first), groups)
    each = range(len(groups))
    blocks = tuple(np.arange(2, 5) + 4 * group for group in each)
    share = Share("request", 0, prefix_hashes(np.arange(3 * TOKENS)), blocks)
    read = dataclasses.replace(share, computed=3 * TOKENS - 1)
    words.write([share])
    assert words.check(0, [read])[1] == 0
    payloads = [[kv.payload(group, block) for block in blocks[group].tolist()] for group in each]
    words.words[:] = 0
    assert words.check(0, [read])[1] > 0
    for group in each:
        for block, payload in zip(blocks[group].tolist(), payloads[group], strict=True):
            kv.write(group, block, payload)
    assert words.check(0, [read])[1] == 0
