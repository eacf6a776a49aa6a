"""The pool and NIXL as children of vLLM's MultiConnector, in two engines on CPU: one prefills, the other decodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connector.tests.engine.pairs import NIXL, ROUTER, Pair, complete, computed, metric, of_blocks, pair
from testkit.http_client import reset_own_cache, reset_tiers

pytestmark = [
    pytest.mark.slow,  # two engines and a router; test_prefill_decode.py, with two more, is in every run
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (NIXL.exists() and ROUTER.exists()), reason="NIXL or the router is not here: run tools/setup.sh partners"
    ),
]
LOADED = "kvpool:loaded_chunks_total"
FETCHED = "vllm:nixl_xfer_time_seconds_count"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """MultiConnector of both in each."""
    with pair(tmp_path_factory.mktemp("composed"), nixl=True) as both:
        yield both


def test_the_pool_stores_loads_and_counts_beside_nixl(engines: Pair) -> None:
    """Statistics of both children reach the front end, where vLLM looks each class up by its name."""
    text = of_blocks(engines.prefill.url, 1, 4)
    loaded = metric(engines.prefill.url, LOADED, 'tier="memory"')
    stored = metric(engines.prefill.url, "kvpool:stored_chunks_total")
    first = complete(engines.prefill.url, text)
    reset_own_cache(engines.prefill.url)
    again = complete(engines.prefill.url, text)
    assert (again.text, again.cached) == (first.text, first.prompt - 1)
    assert metric(engines.prefill.url, LOADED, 'tier="memory"') - loaded == 4
    assert metric(engines.prefill.url, "kvpool:stored_chunks_total") - stored >= 4


def test_the_decode_engine_fetches_from_the_prefill_engine(engines: Pair) -> None:
    """The whole prompt but its last token, although the pool holds a part of it: the first child with a hit would be asked for
    that part, and the rest be computed."""
    text = of_blocks(engines.prefill.url, 2, 6)
    part = of_blocks(engines.prefill.url, 2, 2)
    assert text.startswith(part)
    complete(engines.decode.url, part)
    reset_own_cache(engines.decode.url)
    loaded, before = metric(engines.decode.url, LOADED), computed(engines.decode.url)
    answer = complete(engines.router, text)
    assert computed(engines.decode.url) - before <= 1
    assert metric(engines.decode.url, LOADED) == loaded
    assert metric(engines.decode.url, FETCHED) >= 1
    assert answer.text == complete(engines.prefill.url, text).text


def test_what_the_pool_holds_whole_is_not_fetched(engines: Pair) -> None:
    """The pool is the first child."""
    text = of_blocks(engines.prefill.url, 3, 4)
    expected = complete(engines.decode.url, text).text
    reset_own_cache(engines.decode.url)
    reset_tiers(engines.prefill.url)
    loaded, fetched = metric(engines.decode.url, LOADED), metric(engines.decode.url, FETCHED)
    assert complete(engines.router, text).text == expected
    assert metric(engines.decode.url, LOADED) - loaded == 4
    assert metric(engines.decode.url, FETCHED) == fetched
