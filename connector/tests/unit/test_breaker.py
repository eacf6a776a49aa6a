"""The circuit breaker, on a clock of the test's own."""

from __future__ import annotations

from kvpool_connector.stores import Breaker


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(jitter: float = 0.5) -> tuple[Breaker, Clock]:
    """A breaker without jitter: 0.5 is the middle."""
    clock = Clock()
    return Breaker(first_s=1.0, longest_s=4.0, clock=clock, jitter=lambda: jitter), clock


def test_closed_lets_everything_through() -> None:
    """And a success is no news."""
    breaker, _ = make()
    assert breaker.closed
    assert breaker.allow()
    assert breaker.allow()
    assert not breaker.succeeded()


def test_the_first_fault_opens() -> None:
    """Only the first one is news."""
    breaker, _ = make()
    assert breaker.failed()
    assert not breaker.closed
    assert not breaker.allow()
    assert not breaker.failed()


def test_one_probe_per_delay() -> None:
    """The others are left out until the probe has reported."""
    breaker, clock = make()
    breaker.failed()
    clock.now += 0.99
    assert not breaker.allow()
    clock.now += 0.02
    assert breaker.allow()
    assert not breaker.allow()


def test_a_probe_that_never_reports_does_not_block_for_ever() -> None:
    """Its thread may have ended."""
    breaker, clock = make()
    breaker.failed()
    clock.now += 1.01
    assert breaker.allow()
    clock.now += 4.01
    assert breaker.allow()


def test_success_closes() -> None:
    """And the next fault starts with the shortest delay again."""
    breaker, clock = make()
    for _ in range(5):
        breaker.failed()
    assert breaker.succeeded()
    assert breaker.closed
    assert breaker.allow()
    breaker.failed()
    clock.now += 1.01
    assert breaker.allow()


def test_the_delay_doubles_up_to_its_bound() -> None:
    """1, 2, 4, 4 seconds."""
    breaker, clock = make()
    for delay in (1, 2, 4, 4):
        breaker.failed()
        clock.now += delay - 0.01
        assert not breaker.allow(), delay
        clock.now += 0.02
        assert breaker.allow(), delay


def test_jitter_spreads_the_probes() -> None:
    """Between three quarters and five quarters of the delay."""
    for jitter, share in ((0.0, 0.75), (1.0, 1.25)):
        breaker, clock = make(jitter)
        breaker.failed()
        clock.now += share - 0.01
        assert not breaker.allow()
        clock.now += 0.02
        assert breaker.allow()
