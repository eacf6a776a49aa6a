"""What tiers gained and lost."""

from __future__ import annotations

from kvpool_connector.scheduler.events import Change, Events
from kvpool_connector.transfer import Tier


def test_changes_come_in_their_order_and_once() -> None:
    """A router that mixes them up believes in blocks that are gone."""
    events = Events(enabled=True)
    events.stored(Tier.MEMORY, [b"a", b"b"])
    events.removed(Tier.MEMORY, iter([b"a"]))
    events.stored(Tier.DISK, [b"a"])
    assert events.take() == [
        Change(Tier.MEMORY, (b"a", b"b"), removed=False),
        Change(Tier.MEMORY, (b"a",), removed=True),
        Change(Tier.DISK, (b"a",), removed=False),
    ]
    assert events.take() == []


def test_nothing_is_no_event() -> None:
    """A store of which nothing is left."""
    events = Events(enabled=True)
    events.stored(Tier.MEMORY, [])
    assert events.take() == []


def test_events_that_nobody_takes_are_not_collected() -> None:
    """vLLM's events are off: the list would grow for ever."""
    events = Events(enabled=False)
    events.stored(Tier.MEMORY, [b"a"])
    assert events.take() == []
