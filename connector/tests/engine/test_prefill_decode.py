"""Prefill and decode in two engines that meet in a store, behind vLLM's router."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from connector.tests.engine.pairs import (
    HANDOVER_MS,
    ROUTER,
    Pair,
    announced,
    complete,
    computed,
    metric,
    of_blocks,
    pair,
)
from testkit.http_client import reset_tiers
from testkit.servers import wait_until

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ROUTER.exists(), reason="the router is not here: run tools/setup.sh partners"),
]


FROM_STORE = ("kvpool:loaded_chunks_total", 'tier="remote"')
TOO_LATE = ("kvpool:events_total", 'event="handover too late"')


def settled_parts(engines: Pair) -> int:
    """Return the parts in the store once the prefill engine has written all that earlier tests made it store."""

    def written() -> bool:
        stored = metric(engines.prefill.url, "kvpool:stored_chunks_total")
        return metric(engines.prefill.url, "kvpool:written_chunks_total", 'tier="remote"') == stored

    wait_until("the prefill engine wrote what it stored", written)
    return engines.parts()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Role kv_producer, role kv_consumer."""
    with pair(tmp_path_factory.mktemp("pair"), nixl=False) as both:
        yield both


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: there is nowhere to go")
def test_the_lanes_are_not_bound_to_the_core_of_vllms_loop(engines: Pair) -> None:
    """vLLM pins its own threads of the worker, one by one, and what they start inherits that."""
    roaming = [cores for cores in engines.prefill.worker_threads() if len(cores) > 1]
    assert len(roaming) == len(("alarms", "copy", "read", "write"))


def test_the_decode_engine_computes_the_last_token_only(engines: Pair) -> None:
    """At once, although the answer of the prefill engine is faster than its writes. The text is the same as from one engine."""
    text = of_blocks(engines.prefill.url, 1, 8)
    before, loaded = computed(engines.decode.url), metric(engines.decode.url, *FROM_STORE)
    answer = complete(engines.router, text)
    assert computed(engines.decode.url) - before == 1
    assert metric(engines.decode.url, *FROM_STORE) - loaded == 8
    assert answer.text == complete(engines.prefill.url, text).text


def test_a_prefill_engine_loads_what_it_computed_before(engines: Pair) -> None:
    """From the store, after both of its own memories forgot."""
    text = of_blocks(engines.prefill.url, 2, 4)
    settled = settled_parts(engines)
    first = complete(engines.prefill.url, text)
    wait_until("the parts are in the store", lambda: engines.parts() == settled + 4)
    reset_tiers(engines.prefill.url)
    again = complete(engines.prefill.url, text)
    assert (again.text, again.cached) == (first.text, first.prompt - 1)


def test_a_decode_engine_stores_nothing(engines: Pair) -> None:
    """Neither the prompt that it had to compute nor what it wrote; a further request shows that it would have by now."""
    settled = settled_parts(engines)
    text = of_blocks(engines.prefill.url, 3, 2)
    assert complete(engines.decode.url, text, tokens=32).cached == 0
    complete(engines.decode.url, of_blocks(engines.prefill.url, 4, 1))
    assert metric(engines.decode.url, "kvpool:stored_chunks") == 0
    assert engines.parts() == settled


def test_what_never_arrives_is_computed_after_the_patience(engines: Pair) -> None:
    """The prefill engine promised and did not deliver: later, counted, and the same text."""
    text = of_blocks(engines.prefill.url, 5, 2)
    late = metric(engines.decode.url, *TOO_LATE)
    began = time.monotonic()
    answer = announced(engines.decode.url, text, 64)
    assert time.monotonic() - began > HANDOVER_MS / 1e3
    assert answer.cached == 0
    assert metric(engines.decode.url, *TOO_LATE) - late == 1
    assert answer.text == complete(engines.prefill.url, text).text
