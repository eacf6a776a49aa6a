"""How a hash seed is drawn."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from kvpool_operator.apply.secrets import new_hash_seed
from kvpool_operator.desired import seed


@pytest.mark.parametrize(
    ("draw", "expected"),
    [(lambda _: 0, 1), (lambda below: below - 1, 2**32 - 1)],
    ids=["smallest", "largest"],
)
def test_range(monkeypatch: pytest.MonkeyPatch, draw: Callable[[int], int], expected: int) -> None:
    """The system's generator chooses among all seeds that Python takes, without 0."""
    monkeypatch.setattr(secrets, "randbelow", draw)
    assert new_hash_seed() == str(expected)
    assert seed.MAXIMUM == 2**32 - 1
