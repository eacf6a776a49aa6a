"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from connector.tests.unit.pools import Make, Rig, closing
from connector.tests.unit.slabs import slab_in
from kvpool_connector.tiers.slab import Slab
from testkit import properties

properties.use()


@pytest.fixture
def rig() -> Iterator[Make]:
    """Makes pools, which are closed at the end."""
    with ExitStack() as stack:

        def make(*args: Any, **options: Any) -> Rig:
            return stack.enter_context(closing(Rig(*args, **options)))

        yield make


@pytest.fixture
def slab(tmp_path: Path) -> Iterator[Slab]:
    """Fresh."""
    slab = slab_in(tmp_path)
    yield slab
    slab.close()
