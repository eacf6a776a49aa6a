"""What was stored is read right: by another engine, on two ranks, in other layouts of KV memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from connector.tests.paced.conftest import SMALL
from testkit.paced.engine import engine, tokens
from testkit.paced.profiles import PROFILES
from testkit.patience import STORE_TIMEOUTS
from testkit.servers import KeyValueServer

DOCUMENT = 2000
DOCUMENTS = [tokens(number, DOCUMENT) for number in range(300, 303)]


def test_second_engine(models: Path, store: KeyValueServer) -> None:
    """Documents that an engine wrote to Redis are loaded by another one, which computed nothing yet."""
    kvpool: dict[str, Any] = {
        "tiers": {"cpu": {"size": "256Mi"}}, "admission": "always",
        "remote": store.remote(timeouts=STORE_TIMEOUTS),
    }  # fmt: skip
    with engine(SMALL, models / "small", kvpool, separate=False) as first:
        cold = first.generate(DOCUMENTS, concurrency=3)
        first.settle()
    with engine(SMALL, models / "small", kvpool, separate=False, check=False) as second:
        warm = second.generate(DOCUMENTS, concurrency=3)
        assert second.check() > 0
        assert second.figure("kvpool:loaded_chunks", "remote")
    assert [answer.tokens for answer in warm] == [answer.tokens for answer in cold]
    assert min(answer.cached_tokens for answer in warm) > DOCUMENT // 2


@pytest.mark.parametrize("name", ["mla", "hybrid", "llama-70b-tp8"])
def test_layout(models: Path, name: str) -> None:
    """Documents that the device lost are loaded and read right in each layout and on each rank."""
    profile = dataclasses.replace(PROFILES[name], device_tokens=8192, max_model_tokens=8192)
    kvpool = {"tiers": {"cpu": {"size": "256Mi"}}}
    with engine(profile, models / name, kvpool, separate=False, check=False) as paced:
        cold = paced.generate(DOCUMENTS, concurrency=2, max_tokens=32)
        paced.forget()
        warm = paced.generate(DOCUMENTS, concurrency=3, max_tokens=32)
        reports = paced.reports()
        assert len(reports) == profile.ranks
        assert all(report.checked for report in reports)
        paced.check()
    assert [answer.tokens for answer in warm] == [answer.tokens for answer in cold]
    assert min(answer.cached_tokens for answer in warm) > DOCUMENT // 2
