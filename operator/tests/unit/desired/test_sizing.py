"""The memory sum of an engine."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.desired import sizing
from kvpool_operator.desired.connectors import lmcache_mp

from ..conftest import MakePool

SPEC: dict[str, Any] = {"backend": {}, "model": {"name": "m"}, "tiers": {"cpu": {"size": "4Gi"}}}


@pytest.mark.parametrize(
    ("engine", "defaults", "total"),
    [
        ({}, [], 7),
        ({"gpus": 1}, [], 6),
        ({}, [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "3"}], 9),
        (
            {"env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "5"}]},
            [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "3"}],
            11,
        ),
        ({"env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "nonsense"}]}, [], 6),
    ],
)
def test_tier_and_vllm_and_its_own_cache(
    make_pool: MakePool, engine: dict[str, Any], defaults: list[dict[str, Any]], total: int
) -> None:
    pool = make_pool({**SPEC, "engines": [engine]}, settings={"engineDefaults": {"env": defaults}})
    assert sizing.needed(pool, pool.spec.engines[0]).total == total << 30


def test_the_sum_can_be_read(make_pool: MakePool) -> None:
    pool = make_pool({**SPEC, "engines": [{}]})
    shown = str(sizing.needed(pool, pool.spec.engines[0]))
    assert shown == "4 GiB CPU tier + 2 GiB vLLM + 1 GiB vLLM's own KV cache on CPU = 7 GiB"


def test_lmcaches_server_has_the_tier_of_all_engines_of_its_node(make_pool: MakePool) -> None:
    pool = make_pool({**SPEC, "connector": {"type": "LMCacheMP"}, "engines": [{"replicas": 8}]})
    shown = str(sizing.needed(pool, pool.spec.engines[0]))
    assert shown == "2 GiB vLLM + 1 GiB vLLM's own KV cache on CPU = 3 GiB"
    assert lmcache_mp.memory(pool) == 5 << 30


@pytest.mark.parametrize(
    ("count", "text"), [(4 << 30, "4Gi"), (3 << 29, "1536Mi"), ((1 << 20) + 1024, "1025Ki"), (1000, "1000")]
)
def test_sizes_as_kubernetes_prints_them(count: int, text: str) -> None:
    assert sizing.quantity(count) == text
