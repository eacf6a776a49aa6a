"""Every reason that a Pod can carry is in the documentation with what to do, and every one there can occur."""

from __future__ import annotations

import re
from pathlib import Path

from kvpool_operator.injection.outcome import Why

PAGE = Path(__file__).parents[4] / "docs" / "injection.md"


def test_reasons_in_code_and_page_are_the_same() -> None:
    section = PAGE.read_text().split("## When nothing was injected")[1].split("`PodsMissed`")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {word for row in rows for word in re.findall(r"`(\w+)`", row)} == set(Why)
