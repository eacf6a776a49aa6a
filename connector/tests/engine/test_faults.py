"""Requests that end in the middle of a load, and stores that stop in the middle of a fetch: right text, bounded time, no leak."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import PoolingRequestOutput, RequestOutput, SamplingParams

from connector.tests.engine.harness import Engine, prompt, running
from kvpool_connector.transfer import Kind
from testkit.patience import STORE_TIMEOUTS
from testkit.servers import KeyValueServer, wait_until

pytestmark = pytest.mark.timeout(300)

FETCH_S = 120.0
"""Much more than a store that is silent may cost."""


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[tuple[Engine, KeyValueServer]]:
    """Memory tier and a Redis of its own, which the tests stop in mid-air."""
    with KeyValueServer("redis") as store:
        remote = {
            "type": "redis", "host": store.host, "port": store.port,
            "timeouts": STORE_TIMEOUTS | {"fetch_ms": int(FETCH_S * 1000), "stall_ms": 1500},
        }  # fmt: skip
        kvpool = {"tiers": {"cpu": {"size": "256Mi"}}, "remote": remote, "admission": "always"}
        with running(str(model), kvpool) as started:
            yield started, store


def _tokens(output: RequestOutput | PoolingRequestOutput[Any]) -> list[int]:
    assert isinstance(output, RequestOutput)
    return list(output.outputs[0].token_ids)


def _stored(engine: Engine, number: int) -> tuple[list[int], int]:
    """A document that only the remote store holds. Returns its greedy tokens and how many tokens can be loaded."""
    wait_until("the store answers", lambda: engine.manager.pool.store_reachable is True)
    engine.forget(tiers=True)
    text, _ = engine.generate(prompt(number))
    engine.settle()
    whole = len(engine.chunks(Kind.STORE)) * engine.chunk_tokens
    engine.forget(tiers=True)
    engine.generate(prompt(900 + number, words=3))  # a step, so that the reset is through
    return text, whole


def _begin_load(engine: Engine, number: int, store: KeyValueServer) -> str:
    """A request whose fetch hangs: the store stops once it has said what it holds."""
    core = engine.llm.llm_engine
    request = f"hangs-{number}"
    engine.jobs.clear()
    lookups = engine.manager.pool.begin_load

    def begin_load(keys: list[bytes], req_id: str) -> object:
        store.pause()
        return lookups(keys, req_id)

    engine.manager.pool.begin_load = begin_load  # type: ignore[assignment]
    core.add_request(request, prompt(number), SamplingParams(max_tokens=8, temperature=0))
    try:
        end = time.monotonic() + 10
        while not engine.loads():
            core.step()
            assert time.monotonic() < end, "no load began"
    finally:
        engine.manager.pool.begin_load = lookups
    return request


def test_a_store_that_stops_in_mid_fetch_costs_its_silence_and_no_more(
    engine: tuple[Engine, KeyValueServer],
) -> None:
    """Long before the fetch's own time is up the prompt is computed: the same text."""
    subject, store = engine
    text, whole = _stored(subject, 1)
    assert whole >= 5 * subject.chunk_tokens
    request = _begin_load(subject, 1, store)
    stalled = subject.mover.outbox.outcomes["load stalled"]
    began = time.monotonic()
    answer: list[int] = []
    given_up_s = 0.0
    try:
        while subject.llm.llm_engine.has_unfinished_requests():
            for output in subject.llm.llm_engine.step():
                if output.request_id.startswith(request):
                    answer = _tokens(output)
            assert time.monotonic() - began < FETCH_S
            if not given_up_s and subject.mover.outbox.outcomes["load stalled"] > stalled:
                given_up_s = time.monotonic() - began
    finally:
        store.resume()
    assert answer == text
    assert 0 < given_up_s < FETCH_S / 8
    subject.assert_nothing_is_left()


def test_a_request_that_is_aborted_in_mid_fetch_leaves_nothing(engine: tuple[Engine, KeyValueServer]) -> None:
    """The fetch goes on to its deadline; its slots come back, and the next request is served."""
    subject, store = engine
    text, _ = _stored(subject, 2)
    request = _begin_load(subject, 2, store)
    subject.llm.llm_engine.abort_request([request])
    store.resume()
    subject.assert_nothing_is_left()
    assert subject.generate(prompt(2))[0] == text
    subject.assert_nothing_is_left()


def test_a_reset_in_mid_fetch_leaves_nothing(engine: tuple[Engine, KeyValueServer]) -> None:
    """Rows that a fetch is filling are given to nobody before it ended, though every key is forgotten at once."""
    subject, store = engine
    text, _ = _stored(subject, 3)
    _begin_load(subject, 3, store)
    core = subject.llm.llm_engine
    # vLLM refuses to reset its own cache while a request waits for a load; the connector's is reset all the same.
    core.engine_core.engine_core.scheduler.connector.reset_cache()  # type: ignore[attr-defined]
    assert not len(subject.manager.pool.index)
    store.resume()
    end = time.monotonic() + 60
    answer: list[int] = []
    while core.has_unfinished_requests():
        for output in core.step():
            answer = _tokens(output)
        assert time.monotonic() < end
    assert answer == text
    subject.assert_nothing_is_left()
    assert subject.generate(prompt(3))[0] == text


def test_a_request_that_ends_in_mid_spill_leaves_nothing(engine: tuple[Engine, KeyValueServer]) -> None:
    """Writes to a store that hangs end by their deadline or with its return; nobody waits for them."""
    subject, store = engine
    subject.forget(tiers=True)
    store.pause()
    began = time.monotonic()
    try:
        subject.generate(prompt(4), tokens=2)
        assert time.monotonic() - began < 60
    finally:
        store.resume()
    wait_until("the store answers again", lambda: subject.manager.pool.store_reachable is True)
    subject.assert_nothing_is_left()
