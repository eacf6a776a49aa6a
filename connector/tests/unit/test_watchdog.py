"""Requests that wait for what never comes: told apart from those that merely wait, ended where that is safe, and said once."""

from __future__ import annotations

import logging

import pytest

from connector.tests.unit.pools import HIT, KEYS, MISS, PENDING, RETRY, Clock, Make, Rig
from kvpool_connector.scheduler.watchdog import (
    LEAST_ASKED,
    LOAD_MORE_S,
    LOAD_MORE_STEPS,
    MORE_S,
    MOST_STEP_S,
    Watchdog,
)

BOUND_S = 1.0


@pytest.fixture
def clock() -> Clock:
    """The watchdogs' own."""
    return Clock()


@pytest.fixture
def pool(rig: Make) -> Rig:
    """Over a store."""
    return rig(remote=True)


def late_steps(rig: Rig, seconds: float) -> None:
    """Time passes, and the engine steps meanwhile."""
    rig.clock.now += seconds
    for _ in range(LOAD_MORE_STEPS + 1):
        rig.step()


# ---- lookups -------------------------------------------------------------------------------------------------------


def ended_after(rig: Rig, req_id: str = "r") -> float:
    """Seconds until the wait of a request for one chunk is ended, with a step every 10 ms."""
    began = rig.clock.now
    while not rig.pool.ends_wait(req_id, 1, 0.05):
        rig.step()
        rig.clock.now += 0.01
    return rig.clock.now - began


def test_a_lookup_is_ended_after_its_bound(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and for good; said once."""
    dog = Watchdog(clock)
    asked = 0
    while not dog.ends_wait("r", BOUND_S):
        clock.now += 0.1
        asked += 1
    assert asked == pytest.approx((BOUND_S + MORE_S) / 0.1, abs=1)
    assert [dog.ends_wait("r", BOUND_S) for _ in range(3)] == [True] * 3
    assert not dog.ends_wait("other", BOUND_S)
    assert dog.counts == {"lookup waited too long": 1}
    assert caplog.text.count("request r: nothing said for 1.") == 1
    dog.forget("r")
    assert not dog.ends_wait("r", BOUND_S)


def test_a_step_that_takes_long_is_no_wait(clock: Clock) -> None:
    """A request that was asked about twice was not told to come back for as long as two steps take."""
    dog = Watchdog(clock)
    for _ in range(LEAST_ASKED):
        assert not dog.ends_wait("r", BOUND_S)
        clock.now += 10
    assert dog.ends_wait("r", BOUND_S)


def test_a_full_engine_is_no_wait(clock: Clock) -> None:
    """vLLM does not ask about requests that it has no room for."""
    dog = Watchdog(clock)
    for _ in range(LEAST_ASKED + 1):
        assert not dog.ends_wait("r", 5 * MOST_STEP_S)
    clock.now += 600
    assert not any(dog.ends_wait("r", 5 * MOST_STEP_S) for _ in range(9))


def test_an_answer_ends_the_wait(clock: Clock) -> None:
    """The next one begins anew, as after a load that failed."""
    dog = Watchdog(clock)
    for _ in range(9):
        dog.ends_wait("r", BOUND_S)
    dog.answered("r")
    clock.now += BOUND_S + MORE_S
    assert not any(dog.ends_wait("r", BOUND_S) for _ in range(9))


def test_a_question_that_is_never_answered(pool: Rig) -> None:
    """From then on the request is computed, also what memory has of it; others go on."""
    pool.stored(KEYS[0])
    pool.presence.hung = True
    assert pool.pool.lookup(KEYS[1], "r") is RETRY
    ended_after(pool)
    for _ in range(2):
        assert [pool.pool.lookup(key, "r") for key in KEYS[:2]] == [MISS, MISS]
        pool.step()
    assert pool.pool.lookup(KEYS[0], "other") is HIT
    pool.pool.forget_request("r")
    pool.step()
    assert pool.pool.lookup(KEYS[0], "r") is HIT
    assert pool.pool.counted


def test_the_bound_is_the_question_and_the_fetch(pool: Rig) -> None:
    """As long as nothing was computed, the fetch may take 5 s where every hit is loaded, and the question half a second."""
    assert ended_after(pool) == pytest.approx(5.0 + 0.5 + MORE_S, abs=0.02)


# ---- loads ---------------------------------------------------------------------------------------------------------


def test_a_load_that_no_rank_ends(pool: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It stays, since its blocks are the rank's. Nothing else is loaded until it ends, and others compute what it brings."""
    pool.presence.remote.update(KEYS[:2])
    pool.stored(KEYS[3])
    pool.load(KEYS[0])
    assert pool.pool.lookup(KEYS[0], "other") is PENDING
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            late_steps(pool, 5.0 + LOAD_MORE_S + 1)
    assert caplog.text.count("request r: some rank has not ended its load for 11.0 s") == 1
    assert pool.pool.contents.watchdog.counts == {"load overdue": 1}
    assert [pool.pool.lookup(key, "other") for key in (KEYS[0], KEYS[1], KEYS[3])] == [MISS] * 3
    pool.pool.end_load("r")
    pool.step()
    assert pool.pool.lookup(KEYS[3], "other") is HIT
    assert pool.pool.lookup(KEYS[0], "other") is HIT


def test_one_long_step_is_no_silence_of_a_rank(pool: Rig) -> None:
    """A rank that works is heard at the end of the step."""
    pool.stored(KEYS[3])
    pool.presence.remote.add(KEYS[0])
    pool.load(KEYS[0])
    pool.clock.now += 600
    pool.step()
    assert pool.pool.lookup(KEYS[3], "other") is HIT
    pool.pool.end_load("r")
    assert not pool.pool.contents.watchdog.counts


def test_a_reset_forgets_loads(pool: Rig) -> None:
    """vLLM waits for them in the ranks."""
    pool.presence.remote.add(KEYS[0])
    pool.load(KEYS[0])
    late_steps(pool, 60)
    assert pool.pool.contents.watchdog.stuck
    pool.pool.reset()
    pool.step()
    assert not pool.pool.contents.watchdog.stuck
