"""Load or compute: estimates by a clock that the test moves, and the decision that follows."""

from __future__ import annotations

import logging

import pytest

from connector.tests.unit.pools import Clock, compute
from kvpool_connector.scheduler.admission import (
    BUDGET_SLACK,
    CLOSE_ABOVE,
    LEAST_BUDGET_S,
    OPEN_BELOW,
    UNKNOWN_BUDGET_S,
    UNKNOWN_PATIENCE_S,
    Admission,
)
from kvpool_connector.scheduler.tier_speed import (
    FIRST_PROBES_S,
    MOST_PROBE_PAUSE_S,
    PROBE_EVERY_S,
    PROBE_SHARE,
    SURE_AFTER,
)
from kvpool_connector.transfer import Tier

CHUNK, TOKENS = 1 << 20, 100
DISK, REMOTE = Tier.DISK, Tier.REMOTE


@pytest.fixture
def clock() -> Clock:
    """Stands still."""
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    """Knows nothing yet."""
    return Admission(CHUNK, TOKENS, clock=clock)


def chunk_takes(admission: Admission, clock: Clock, seconds: float) -> None:
    """Compute ten chunks in a pass, each of which takes so long."""
    compute(admission, clock, 10 * TOKENS, 10 * seconds)


def settle(admission: Admission, tier: Tier, seconds: float) -> None:
    """So long takes a chunk for a while."""
    for _ in range(20):
        admission.read(tier, CHUNK, seconds)


def test_everything_is_allowed_before_there_are_measurements(admission: Admission) -> None:
    """A guess would be worse."""
    assert admission.allows(DISK)
    assert admission.allows(REMOTE)
    assert admission.figures() == {}
    assert (admission.compute_s(5), admission.load_s(DISK, 5)) == (None, None)


@pytest.mark.parametrize(("load_s", "allowed"), [(0.001, True), (0.5, False)])
@pytest.mark.parametrize("read_first", [True, False])
def test_the_faster_way_is_taken(
    admission: Admission, clock: Clock, load_s: float, allowed: bool, read_first: bool
) -> None:
    """Whichever of the two was measured first; and of this tier alone."""
    for read in (read_first, not read_first):
        if read:
            admission.read(REMOTE, CHUNK, load_s)
        else:
            chunk_takes(admission, clock, 0.1)
    assert admission.allows(REMOTE) is allowed
    assert admission.allows(DISK)


def test_a_tier_at_the_border_stays_as_it_is(admission: Admission, clock: Clock) -> None:
    """It closes above one ratio and opens below a smaller one."""
    chunk_takes(admission, clock, 0.1)
    between = 0.1 * (CLOSE_ABOVE + OPEN_BELOW) / 2
    settle(admission, REMOTE, between)
    assert admission.allows(REMOTE)
    settle(admission, REMOTE, 0.1 * CLOSE_ABOVE * 1.05)
    assert not admission.allows(REMOTE)
    settle(admission, REMOTE, between)
    assert not admission.allows(REMOTE)
    settle(admission, REMOTE, 0.1 * OPEN_BELOW * 0.95)
    assert admission.allows(REMOTE)


def test_a_change_is_told_once(admission: Admission, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """With both figures."""
    chunk_takes(admission, clock, 0.1)
    with caplog.at_level(logging.WARNING):
        settle(admission, REMOTE, 0.5)
    (record,) = caplog.records
    assert "remote tier: reading a chunk takes 500.0 ms, computing it 100.0 ms: its hits are computed" in record.message


def test_one_slow_read_is_no_slow_tier(admission: Admission, clock: Clock) -> None:
    """The estimate follows by halves."""
    chunk_takes(admission, clock, 0.1)
    settle(admission, DISK, 0.01)
    admission.read(DISK, CHUNK, 1.0)
    assert admission.load_s(DISK, 1) == pytest.approx(0.0198, rel=0.01)
    assert admission.allows(DISK)


def test_a_read_that_was_given_up(admission: Admission, clock: Clock) -> None:
    """It bounds the rate from above: it makes a tier slower, never faster, and a slower one it leaves as it is."""
    admission.read(REMOTE, CHUNK, 1.0, at_most=True)
    assert admission.load_s(REMOTE, 1) == pytest.approx(1.0)
    admission.read(REMOTE, CHUNK, 0.01, at_most=True)
    assert admission.load_s(REMOTE, 1) == pytest.approx(1.0)
    settle(admission, REMOTE, 0.01)
    for _ in range(20):
        clock.now += 1.0
        admission.read(REMOTE, CHUNK, 1.0, at_most=True)
    assert admission.load_s(REMOTE, 1) == pytest.approx(1.0, rel=0.01)


def test_a_pause_is_no_slow_tier(admission: Admission, clock: Clock) -> None:
    """It cuts a read that had its estimated time, on every rank, and the next one arrives."""
    chunk_takes(admission, clock, 0.03)
    settle(admission, REMOTE, 0.02)
    for _ in range(3):
        for rank in range(8):
            clock.now += 0.001 if rank else 0.05
            admission.read(REMOTE, CHUNK, 0.05, at_most=True)
        assert admission.load_s(REMOTE, 1) == pytest.approx(0.02)
        assert admission.allows(REMOTE)
        clock.now += 0.02
        admission.read(REMOTE, CHUNK, 0.02)


def test_reads_that_are_given_up_one_after_the_other(admission: Admission, clock: Clock) -> None:
    """The second one began after the first one was given up: the tier is slow."""
    chunk_takes(admission, clock, 0.03)
    settle(admission, REMOTE, 0.02)
    for allowed in (True, False):
        clock.now += 0.06
        admission.read(REMOTE, CHUNK, 0.06, at_most=True)
        assert admission.allows(REMOTE) is allowed


# ---- one request among others ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queued", "prefill_chunks", "pays"),
    [
        (0, 0, True),  # nothing is queued, and the tier is open
        (1, 0, True),  # 11 chunks at 50 ms, 10 at 100 ms
        (10, 0, False),  # 20 at 50 ms are as long
        (10, 5, True),  # but the engine is busy for 0.5 s
        (30, 5, False),
    ],
)
def test_what_is_queued_counts(
    admission: Admission, clock: Clock, queued: int, prefill_chunks: int, pays: bool
) -> None:
    """Ten chunks behind earlier loads, against ten chunks behind other prompts. The tier itself stays open."""
    chunk_takes(admission, clock, 0.1)
    settle(admission, REMOTE, 0.05)
    assert admission.pays(REMOTE, 10, queued, prefill_chunks * TOKENS) is pays
    assert admission.allows(REMOTE)


def test_what_is_queued_is_loaded_while_a_rate_is_unknown(admission: Admission, clock: Clock) -> None:
    assert admission.pays(REMOTE, 10, 1000, 0)
    chunk_takes(admission, clock, 0.1)
    assert admission.pays(REMOTE, 10, 1000, 0)


# ---- probes ------------------------------------------------------------------------------------------------------


def test_probes_have_a_pause(admission: Admission, clock: Clock) -> None:
    """Per tier."""
    assert admission.wants_probe(DISK)
    assert admission.wants_probe(REMOTE)
    clock.now += PROBE_EVERY_S - 0.01
    assert not admission.wants_probe(DISK)
    clock.now += 0.02
    assert admission.wants_probe(DISK)
    assert not admission.wants_probe(DISK)


def test_probes_of_a_slow_tier_have_a_longer_pause(admission: Admission, clock: Clock) -> None:
    """On a slow link a probe itself takes the room of others."""
    settle(admission, REMOTE, 2.0)
    assert admission.wants_probe(REMOTE)
    clock.now += 2.0 / PROBE_SHARE - 0.01
    assert not admission.wants_probe(REMOTE)
    clock.now += 0.02
    assert admission.wants_probe(REMOTE)


def test_the_pause_of_a_probe_is_bounded(admission: Admission, clock: Clock) -> None:
    """One absurd sample must not end the measuring."""
    for _ in range(SURE_AFTER):
        admission.read(REMOTE, 1, 5.0)
    assert admission.wants_probe(REMOTE)
    clock.now += MOST_PROBE_PAUSE_S + 0.01
    assert admission.wants_probe(REMOTE)


def test_the_first_measurement_is_waited_for(admission: Admission, clock: Clock) -> None:
    """For a while; then the tier counts as that slow, until the probe's end tells."""
    assert admission.awaits_measurement(REMOTE)
    clock.now += FIRST_PROBES_S - 0.001
    assert admission.awaits_measurement(REMOTE)
    assert not admission.ends_wait()
    clock.now += 0.002
    assert admission.ends_wait()
    assert not admission.ends_wait()
    assert not admission.awaits_measurement(REMOTE)
    assert admission.load_s(REMOTE, 1) == pytest.approx(FIRST_PROBES_S)


def test_a_measurement_ends_the_wait(admission: Admission, clock: Clock) -> None:
    """Of this tier alone."""
    assert admission.awaits_measurement(REMOTE)
    assert admission.awaits_measurement(DISK)
    admission.read(REMOTE, CHUNK, 0.01)
    assert not admission.awaits_measurement(REMOTE)
    assert admission.awaits_measurement(DISK)
    clock.now += FIRST_PROBES_S
    assert admission.ends_wait()
    assert admission.load_s(REMOTE, 1) == pytest.approx(0.01)


def test_a_tier_that_seems_too_slow_at_first_is_measured_again_at_once(admission: Admission, clock: Clock) -> None:
    """A request waits for that, too, within the same bound."""
    chunk_takes(admission, clock, 0.01)
    assert admission.awaits_measurement(REMOTE)
    assert admission.wants_probe(REMOTE)
    assert not admission.wants_probe(REMOTE)  # that one has not ended
    admission.read(REMOTE, CHUNK, 0.02)
    assert not admission.allows(REMOTE)
    assert admission.awaits_measurement(REMOTE)
    assert admission.wants_probe(REMOTE)
    admission.read(REMOTE, CHUNK, 0.001)
    assert admission.allows(REMOTE)
    assert not admission.awaits_measurement(REMOTE)


def test_a_tier_that_was_slow_three_times_is_slow(admission: Admission, clock: Clock) -> None:
    chunk_takes(admission, clock, 0.01)
    for _ in range(SURE_AFTER):
        assert admission.awaits_measurement(REMOTE)
        assert admission.wants_probe(REMOTE)
        admission.read(REMOTE, CHUNK, 0.02)
    assert not admission.awaits_measurement(REMOTE)
    assert not admission.wants_probe(REMOTE)
    assert not admission.allows(REMOTE)


def test_what_was_assumed_does_not_count_once_a_read_ended(admission: Admission, clock: Clock) -> None:
    chunk_takes(admission, clock, 0.01)
    assert admission.awaits_measurement(REMOTE)
    clock.now += FIRST_PROBES_S
    assert admission.ends_wait()
    assert not admission.allows(REMOTE)
    admission.read(REMOTE, CHUNK, 0.001)
    assert admission.load_s(REMOTE, 1) == pytest.approx(0.001)
    assert admission.allows(REMOTE)


# ---- budgets -----------------------------------------------------------------------------------------------------


def test_a_fetch_may_take_what_computing_takes(admission: Admission, clock: Clock) -> None:
    """Never more than the time-out; never too little to try at all."""
    assert admission.fetch_budget_s(10, 5.0) == UNKNOWN_BUDGET_S
    assert admission.fetch_budget_s(10, 1.0) == 1.0
    chunk_takes(admission, clock, 0.1)
    assert admission.fetch_budget_s(10, 5.0) == pytest.approx(BUDGET_SLACK)
    assert admission.fetch_budget_s(10, 5.0, prefill_tokens=5 * TOKENS) == pytest.approx(1.5 * BUDGET_SLACK)
    assert admission.fetch_budget_s(100, 5.0) == 5.0


def test_a_small_fetch_gets_a_least_time(admission: Admission, clock: Clock) -> None:
    chunk_takes(admission, clock, 0.001)
    assert admission.fetch_budget_s(1, 5.0) == LEAST_BUDGET_S


def test_a_long_prompt_waits_longer_for_the_lookup(admission: Admission, clock: Clock) -> None:
    """A twentieth of what computing it takes, or the configured time if that is longer; a second at the most."""
    assert admission.lookup_patience_s(1000, 0.05) == UNKNOWN_PATIENCE_S
    chunk_takes(admission, clock, 0.1)
    assert admission.lookup_patience_s(5, 0.05) == 0.05
    assert admission.lookup_patience_s(100, 0.05) == pytest.approx(0.5)
    assert admission.lookup_patience_s(1000, 0.05) == 1.0
    assert admission.lookup_patience_s(1000, 2.0) == 2.0


@pytest.mark.parametrize(("chunks", "worth"), [(1, False), (2, False), (3, True)])
def test_the_store_is_asked_about_what_takes_longer_to_compute(
    admission: Admission, clock: Clock, chunks: int, worth: bool
) -> None:
    """An answer and a load take a step each while others run."""
    assert admission.worth_asking(chunks)
    chunk_takes(admission, clock, 0.02)
    assert admission.worth_asking(chunks)  # what a step takes is not known
    for seconds in (0.5, 0.022, 0.022):  # the first one was disturbed
        compute(admission, clock, 3, seconds)
    assert admission.worth_asking(chunks) is worth


def test_admission_turned_off_loads_whatever_is_slow(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Rates are measured all the same, and shown."""
    admission = Admission(CHUNK, TOKENS, enabled=False, clock=clock)
    assert not admission.awaits_measurement(REMOTE)
    chunk_takes(admission, clock, 0.1)
    settle(admission, REMOTE, 0.5)
    compute(admission, clock, 1, 0.9)
    assert admission.allows(REMOTE)
    assert admission.worth_asking(1)
    assert admission.fetch_budget_s(1, 5.0) == 5.0
    assert caplog.records == []
    assert admission.figures()["read_bytes_per_second", REMOTE] == pytest.approx(CHUNK / 0.5)


def test_the_decision_and_its_inputs_are_shown(admission: Admission, clock: Clock) -> None:
    """What was not measured is not shown."""
    chunk_takes(admission, clock, 0.1)
    admission.read(REMOTE, CHUNK, 0.5)
    compute(admission, clock, 1, 0.1)
    assert admission.figures() == {
        ("prefill_tokens_per_second", None): pytest.approx(1111, rel=0.01),  # a step costs 0.1 s of 1 s
        ("decode_step_seconds", None): pytest.approx(0.1),
        ("chunk_compute_seconds", None): pytest.approx(0.09),
        ("read_bytes_per_second", REMOTE): pytest.approx(CHUNK / 0.5),
        ("chunk_load_seconds", REMOTE): pytest.approx(0.5),
        ("admitted", REMOTE): 0.0,
    }
