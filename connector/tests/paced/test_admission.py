"""Load or compute, where vLLM schedules ahead: the estimates are the device's, and a healthy store is used."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from connector.tests.paced.conftest import SMALL
from testkit.paced.engine import PacedEngine, engine, tokens
from testkit.patience import STORE_TIMEOUTS
from testkit.servers import KeyValueServer, wait_until

DOCUMENT = 2000
DOCUMENTS = [tokens(number, DOCUMENT) for number in range(400, 404)]
NEAR = (0.8, 1.25)
"""How far an estimate may be from the device's rate."""
COARSE = (0.5, 2)
"""The same where device, scheduler and store share this machine's cores with other work."""
ROUNDS = 3
"""The first one warms the engine up."""


def device_rate(paced: PacedEngine) -> float:
    """Return how many tokens a second the large passes computed in the median, without what each pass costs.

    This machine may be late: a pass then took longer than the profile says.
    """
    (report,) = paced.reports()
    before = float("-inf")
    rates = []
    for each in report.passes:
        end = each.ended_at + each.late_s
        if each.tokens >= SMALL.max_batched_tokens // 2:
            rates.append(each.tokens / (end - max(each.launched_at, before) - paced.profile.step_s))
        before = end
    return statistics.median(rates)


def loads(paced: PacedEngine, document: list[int]) -> bool:
    """Ask for a document of which nothing is left in the engine, and return whether the store had it.

    The first measurement of a store is of one part and is waited for 0.1 s. On a busy machine it may
    close the tier, which later ones open again.
    """
    paced.forget(tiers=True)
    (answer,) = paced.generate([document], max_tokens=1)
    return answer.cached_tokens > 0


@pytest.mark.parametrize(("profile", "chats"), [("llama-8b", 140), ("fast", 8)])
def test_beside_decodes(models: Path, store: KeyValueServer, profile: str, chats: int) -> None:
    """However many requests decode in every pass, the estimate is that of the prompts' tokens, and
    the store is used. 140 have more tokens than a pass needs to be a prefill."""
    short = [tokens(number, 20) for number in range(600, 600 + chats)]
    kvpool: dict[str, Any] = {
        "tiers": {"cpu": {"size": "256Mi"}}, "remote": store.remote(timeouts=STORE_TIMEOUTS),
    }  # fmt: skip
    with engine(profile, models / profile, kvpool, separate=False, max_num_seqs=chats + 4) as paced:
        for number in range(ROUNDS):
            others = [tokens(10 * number + other, DOCUMENT) for other in range(800, 803)]
            asked = [*short, DOCUMENTS[0], *others]
            paced.generate(asked, concurrency=len(asked), max_tokens=24)
        estimate = paced.figure("kvpool:prefill_tokens_per_second")
        assert estimate is not None
        assert COARSE[0] <= estimate / device_rate(paced) <= COARSE[1]
        wait_until("the store is used", lambda: loads(paced, DOCUMENTS[0]), poll_s=0.2)
        assert paced.figure("kvpool:admitted", "remote") == 1


@pytest.mark.slow
def test_measured(models: Path, store: KeyValueServer) -> None:
    """One engine computes and stores documents; another one loads each of them, asked one at a time.

    Not for every run: device, scheduler and store share this machine's cores, and where other work
    keeps them busy, too, outputs come in bursts, which the estimate takes for passes of other lengths.
    """
    kvpool: dict[str, Any] = {
        "tiers": {"cpu": {"size": "256Mi"}}, "remote": store.remote(timeouts=STORE_TIMEOUTS),
    }  # fmt: skip
    with engine(SMALL, models / "small", kvpool, separate=False) as first:
        cold = first.generate(DOCUMENTS, concurrency=2, max_tokens=32)
        first.settle()
        estimate = first.figure("kvpool:prefill_tokens_per_second")
        assert estimate is not None
        assert NEAR[0] <= estimate / device_rate(first) <= NEAR[1]
        step_s = first.figure("kvpool:decode_step_seconds")
        assert step_s == pytest.approx(SMALL.step_s, rel=0.5)
    with engine(SMALL, models / "small", kvpool, separate=False) as second:
        second.generate([tokens(500, DOCUMENT)], max_tokens=16)  # the comparison has both sides from here on
        wait_until("the store is found fast enough", lambda: loads(second, DOCUMENTS[0]), poll_s=0.2)
        warm = second.generate(DOCUMENTS[1:], max_tokens=32)
        assert second.figure("kvpool:admitted", "remote") == 1
        chunk_tokens = second.figure("kvpool:chunk_tokens")
    assert chunk_tokens is not None
    assert [answer.tokens for answer in warm] == [answer.tokens for answer in cold[1:]]
    assert min(answer.cached_tokens for answer in warm) > DOCUMENT - 1 - chunk_tokens
