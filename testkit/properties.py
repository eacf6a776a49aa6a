"""How property tests run: an example has no time limit of its own, since a busy machine is no fault of what is tested."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("kvpool", deadline=None)


def use() -> None:
    """For a conftest. Limits of a whole test are pytest's."""
    settings.load_profile("kvpool")
