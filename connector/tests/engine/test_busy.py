"""A request in an engine where others run: it waits for the store's answer only where that may save time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm import RequestOutput, SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput

from connector.tests.engine.harness import Engine, empty, prompt, remote, running
from kvpool_connector.scheduler.lookups import Lookup
from kvpool_connector.transfer import Tier
from kvpool_connector.vllm.engine_view import RunningRequests, pass_tokens
from kvpool_connector.vllm.handover import Role
from testkit.servers import KeyValueServer, wait_until

pytestmark = pytest.mark.timeout(300)

LONG = 60
"""Tokens of the request that runs while the other one comes and goes."""


@pytest.fixture(scope="module")
def engine(model: Path, store: KeyValueServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Memory and Redis; hits are weighed."""
    empty(store)
    kvpool = {"tiers": {"cpu": {"size": "256Mi"}}, "remote": remote(store, tmp_path_factory.mktemp("remote"))}
    with running(str(model), kvpool) as started:
        wait_until("the store answers", lambda: started.manager.pool.store_reachable is True)
        yield started


@pytest.fixture
def answers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Lookup]:
    """What is said about keys of which nothing is known. Computing a prompt takes 0.1 s, a step that decodes as long."""
    said: list[Lookup] = []
    lookups, admission = engine.manager.pool.lookups, engine.manager.pool.admission
    decide = lookups._wait_or_compute

    def record(tier: Tier) -> Lookup:
        said.append(decide(tier))
        return said[-1]

    monkeypatch.setattr(lookups, "_wait_or_compute", record)
    monkeypatch.setattr(admission, "pass_ended", lambda number: None)
    monkeypatch.setattr(admission._passes, "prefill_rate", 1e4)
    monkeypatch.setattr(admission._passes, "step_s", 0.1)
    return said


@pytest.mark.parametrize(
    ("scheduled", "drafts", "tokens"),
    [
        ({}, {}, (0, 0)),
        ({"prompt": 700, "last token of a prompt": 1}, {}, (700, 1)),
        ({f"chat {number}": 1 for number in range(512)}, {}, (0, 512)),
        ({"prompt": 700, "chat": 4, "other": 1}, {"chat": [7, 8, 9]}, (700, 5)),
        ({"padded": 4, "prompt": 4}, {"padded": [-1, -1, -1]}, (4, 4)),
    ],
)
def test_tokens_of_a_pass(scheduled: dict[str, int], drafts: dict[str, list[int]], tokens: tuple[int, int]) -> None:
    """Drafts are decoded, and all that a request is given beyond them and one token is prefilled."""
    step = SchedulerOutput.make_empty()
    step.num_scheduled_tokens, step.scheduled_spec_decode_tokens = scheduled, drafts
    step.total_num_scheduled_tokens = sum(scheduled.values())
    assert pass_tokens(step) == tokens


def test_passes_are_told_apart(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM schedules for one request: its prompt in one pass, and then a token in each."""
    launched: list[tuple[int, int]] = []
    passes = engine.manager.pool.admission._passes
    launch = passes.launch

    def record(prefill_tokens: int, decode_tokens: int, now: float) -> int:
        launched.append((prefill_tokens, decode_tokens))
        return launch(prefill_tokens, decode_tokens, now)

    monkeypatch.setattr(passes, "launch", record)
    (output,) = engine.llm.generate([prompt(77)], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert output.prompt_token_ids is not None
    ran = [tokens for tokens in launched if any(tokens)]
    assert ran == [(len(output.prompt_token_ids), 0)] + [(0, 1)] * 3


def _beside_another(engine: Engine, text: str) -> list[int]:
    """Its greedy tokens, asked for while another request decodes and goes on to do so."""
    core = engine.llm.llm_engine
    core.add_request("long", prompt(70, words=20), SamplingParams(max_tokens=LONG, temperature=0, ignore_eos=True))
    for _ in range(3):
        core.step()
    core.add_request("short", text, SamplingParams(max_tokens=8, temperature=0))
    ended: dict[str, list[int]] = {}
    while core.has_unfinished_requests():
        for output in core.step():
            assert isinstance(output, RequestOutput)
            if output.finished:
                ended[output.request_id] = list(output.outputs[0].token_ids)
    assert list(ended) == ["short", "long"]
    return ended["short"]


def test_what_is_sooner_computed_is_not_waited_for(engine: Engine, answers: list[Lookup]) -> None:
    text = _beside_another(engine, prompt(71))
    assert answers[-1:] == [Lookup.MISS]
    engine.forget(tiers=True)
    answers.clear()
    assert engine.generate(prompt(71))[0] == text
    assert Lookup.MISS not in answers  # nobody else runs
    engine.assert_nothing_is_left()


def test_what_takes_longer_to_compute_is_waited_for(
    engine: Engine, answers: list[Lookup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.manager.pool.admission._passes, "step_s", 0.01)
    _beside_another(engine, prompt(72))
    assert set(answers) == {Lookup.RETRY}


def test_a_decode_engine_waits_for_its_prefill_engine(
    engine: Engine, answers: list[Lookup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told what is about to come, whether others run or not."""
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    monkeypatch.setattr(scheduler.connector, "_engine", RunningRequests(scheduler.connector.scheduler, Role.CONSUMER))
    monkeypatch.setattr(engine.manager, "role", Role.CONSUMER)
    _beside_another(engine, prompt(73))
    assert set(answers) == {Lookup.RETRY}
