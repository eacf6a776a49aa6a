"""The connector with CUDA's copies, at a GPU's pace: what a pass reads is checked when it does."""

from __future__ import annotations

from testkit.paced.engine import PacedEngine, tokens

DOCUMENT = 3000
"""Tokens of a prompt."""


def test_ahead(paced: PacedEngine) -> None:
    """Steps are scheduled and launched while the pass before is running, as on a GPU."""
    core = paced.llm.engine_core.engine_core
    assert core.step_fn == core.step_with_batch_queue
    paced.generate([tokens(1, 100)], max_tokens=40)
    (report,) = paced.reports()
    assert report.launched_ahead > 0


def test_pace(paced: PacedEngine) -> None:
    """A pass lasts as long as the profile says."""
    paced.generate([tokens(2, DOCUMENT)], max_tokens=4)
    (report,) = paced.reports()
    for each in report.passes:
        assert abs(each.ended_at - each.began_at - paced.profile.pass_s(each.tokens)) < 1e-6
    assert sum(each.tokens for each in report.passes) == DOCUMENT + 3


def test_memory(paced: PacedEngine) -> None:
    """Documents that the device lost are loaded from memory, and are read right."""
    documents = [tokens(number, DOCUMENT) for number in range(10, 14)]
    cold = paced.generate(documents, concurrency=2)
    paced.forget()
    warm = paced.generate(documents, concurrency=4)
    assert [answer.tokens for answer in warm] == [answer.tokens for answer in cold]
    assert min(answer.cached_tokens for answer in warm) > DOCUMENT // 2
    assert paced.check() > 0


def test_eviction(paced: PacedEngine) -> None:
    """Documents that push each other off the device come back while others are computed."""
    documents = [tokens(number, DOCUMENT) for number in range(20, 26)]
    paced.generate(documents, concurrency=2)
    paced.settle()
    mixed = [*documents, *(tokens(number, 500) for number in range(30, 34))]
    answers = paced.generate(mixed[::2] + mixed[1::2], concurrency=3)
    assert sum(answer.cached_tokens for answer in answers) > 2 * DOCUMENT
    assert paced.check() > 0


def test_preemption(paced: PacedEngine) -> None:
    """Requests that do not fit together are preempted and resumed, and read what is theirs."""
    documents = [tokens(number, 1300) for number in range(40, 46)]
    preempted = paced.preempted
    first = paced.generate(documents, concurrency=6, max_tokens=128)
    second = paced.generate(documents, concurrency=6, max_tokens=128)
    assert paced.preempted > preempted
    assert [answer.tokens for answer in first] == [answer.tokens for answer in second]
    assert paced.check() > 0
