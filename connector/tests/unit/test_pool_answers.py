"""When a hit is no hit: admission, requests that wait, verification, a pool that is closed down."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from connector.tests.unit.pools import CHUNK_BYTES, HIT, KEYS, MISS, PENDING, RETRY, Busy, Make, Rig, compute
from kvpool_connector.scheduler.admission import BUDGET_SLACK, UNKNOWN_BUDGET_S
from kvpool_connector.scheduler.engine_view import IdleEngine
from kvpool_connector.scheduler.lookups import Lookup
from kvpool_connector.scheduler.tier_speed import FIRST_PROBES_S, PROBE_EVERY_S, SURE_AFTER
from kvpool_connector.transfer import Reports, Sample, Tier

A, B, C, D = KEYS[:4]
G0, G1 = [[bytes([n]) * 4 + bytes([0, 0, 0, group]) for n in range(4)] for group in range(2)]
"""Keys of two KV groups."""


def sample(it: Rig, tier: Tier, seconds: float) -> None:
    """A rank read one chunk in this time."""
    it.pool.on_reports(Reports(samples=[Sample(tier, CHUNK_BYTES, seconds)]))


def chunk_takes(it: Rig, seconds: float) -> None:
    """Computing does."""
    compute(it.admission, it.clock, 64 * 64, 64 * seconds)


# ---- admission ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "remote"])
def below(request: pytest.FixtureRequest, rig: Make, tmp_path: Path) -> tuple[Rig, Tier]:
    """A is in this tier, which was never read. An answer about B is on its way, for the remote store: asking costs a step."""
    tier = Tier(request.param)
    it = rig(tmp_path, measured=True) if tier is Tier.DISK else rig(measured=True, remote=True)
    it.only_below(A)
    it.presence.remote.add(A)
    return it, tier


def test_an_unmeasured_tier_is_measured_first(below: tuple[Rig, Tier]) -> None:
    """One probe, for which the request waits; its answer decides."""
    it, tier = below
    assert it.pool.lookup(A, "r") is RETRY
    orders = it.step()
    assert [(probe.tier, probe.key) for probe in orders.probes] == [(tier, A)]
    if tier is Tier.DISK:
        assert it.disk is not None
        assert orders.probes[0].disk_slot == it.disk._index.find(A)
    assert it.pool.lookup(A, "r") is RETRY
    assert it.step().probes == ()
    sample(it, tier, 0.001)
    assert it.pool.lookup(A, "r") is HIT


def test_a_slow_first_measurement_is_repeated(below: tuple[Rig, Tier]) -> None:
    """The request waits for the next one, which decides."""
    it, tier = below
    chunk_takes(it, 0.01)
    assert it.pool.lookup(A, "r") is RETRY
    assert len(it.step().probes) == 1
    sample(it, tier, 0.02)
    assert it.pool.lookup(A, "r") is RETRY
    assert len(it.step().probes) == 1
    sample(it, tier, 0.001)
    assert it.pool.lookup(A, "r") is HIT


def test_a_first_measurement_is_not_waited_for_longer_than_its_bound(below: tuple[Rig, Tier]) -> None:
    """Then the tier counts as that slow, and what computing takes decides."""
    it, _ = below
    chunk_takes(it, FIRST_PROBES_S / 2)
    assert it.pool.lookup(A, "r") is RETRY
    it.step()
    it.clock.now += FIRST_PROBES_S - 0.001
    assert it.pool.lookup(A, "r") is RETRY
    it.step()
    it.clock.now += 0.002
    assert it.pool.lookup(A, "r") is MISS


def test_without_a_measured_prefill_a_slow_tier_is_loaded_from(below: tuple[Rig, Tier]) -> None:
    """There is nothing to compare with; the load's budget bounds the loss."""
    it, tier = below
    assert it.pool.lookup(A, "r") is RETRY
    it.step()
    it.clock.now += FIRST_PROBES_S
    load = it.load(A)
    assert bool(load.from_disk) is (tier is Tier.DISK)
    assert load.fetch_s == UNKNOWN_BUDGET_S


@pytest.fixture
def among_others(rig: Make) -> Rig:
    """Others run: a chunk takes 20 ms to compute, a step 15 ms. B and C are in memory, of others nothing is known."""
    it = rig(measured=True, remote=True, slots=8)
    chunk_takes(it, 0.02)
    compute(it.admission, it.clock, 1, 0.015)
    it.stored(B, C)
    it.settle()
    it.presence.remote.add(D)
    return it


def test_the_end_of_a_prompt_is_computed_sooner_than_asked_for(among_others: Rig) -> None:
    """Two chunks in memory, one that only the store may know of: the load of the two does not wait for that answer."""
    it = among_others
    it.pool.lookups.scan_begins(3, Busy())
    assert [it.pool.lookup(key, "r") for key in (B, C, D)] == [HIT, HIT, MISS]
    assert it.pool.counts["answer not waited for"] == 1
    it.step()
    sample(it, Tier.REMOTE, 0.001)
    it.pool.lookups.scan_begins(1, Busy())
    assert it.pool.lookup(D, "later") is HIT  # it was asked about all the same


def test_more_than_the_end_is_waited_for(among_others: Rig) -> None:
    it = among_others
    it.pool.lookups.scan_begins(4, Busy())
    assert [it.pool.lookup(key, "r") for key in (B, C, D)] == [HIT, HIT, RETRY]


def test_nothing_passes_while_one_waits_alone(among_others: Rig) -> None:
    """And what ran in one step may have ended in the next."""
    it = among_others
    it.pool.lookups.scan_begins(1, Busy())
    assert it.pool.lookup(A, "r") is MISS
    it.step()
    it.pool.lookups.scan_begins(1, IdleEngine())
    assert it.pool.lookup(D, "s") is RETRY


def test_a_closed_store_is_not_waited_for(rig: Make) -> None:
    """It is asked all the same, for whoever comes later. Once in a while the answer is waited for, since
    measuring takes a key that is there."""
    it = rig(measured=True, remote=True)
    it.presence.remote |= {A, B, C}
    chunk_takes(it, 0.002)
    for _ in range(SURE_AFTER):
        sample(it, Tier.REMOTE, 0.01)
    assert it.pool.lookup(A, "r") is RETRY
    it.step()
    assert it.pool.lookup(A, "r") is MISS
    assert len(it.step().probes) == 1
    assert it.pool.lookup(B, "s") is MISS
    assert it.pool.counts["closed store not waited for"] == 1
    it.step()
    assert it.presence.ask(B, "t")  # it was answered
    it.clock.now += PROBE_EVERY_S
    assert it.pool.lookup(C, "u") is RETRY


@pytest.mark.parametrize("why", ["no store", "lost", "closed", "not for this request", "broken"])
def test_a_store_that_gives_the_request_nothing(rig: Make, why: str) -> None:
    """A decode engine would wait in vain for its prefill engine's writes."""
    it = rig(measured=True, remote=why != "no store")
    chunk_takes(it, 0.002)
    assert it.pool.loads_from_store("r") is (why != "no store")
    if why == "lost":
        it.presence.reachable = False
    elif why == "closed":
        sample(it, Tier.REMOTE, 0.01)
    elif why == "not for this request":
        it.pool.lookups.restrict("r", frozenset({Tier.MEMORY}))
    elif why == "broken":
        it.pool.close_down("a rank is gone", "Start again")
    assert not it.pool.loads_from_store("r")
    assert it.pool.loads_from_store("s") is (why == "not for this request")


def test_a_closed_tier_is_a_miss_and_is_measured_again(below: tuple[Rig, Tier]) -> None:
    """By probes that nobody waits for, at most one in a second; when it is fast again, its hits are loaded."""
    it, tier = below
    chunk_takes(it, 0.002)
    for _ in range(SURE_AFTER):
        sample(it, tier, 0.01)
    for probes in (1, 0):
        assert it.pool.lookup(A, str(probes)) is MISS
        assert len(it.step().probes) == probes
    it.clock.now += PROBE_EVERY_S
    assert it.pool.lookup(A, "later") is MISS
    assert it.pool.busy  # a probe waits to be sent
    assert len(it.step().probes) == 1
    assert it.pool.counts[f"{tier.value} hit not admitted"] == 3
    for _ in range(8):
        sample(it, tier, 0.0001)
    assert it.pool.lookup(A, "last") is HIT


def test_a_closed_tier_keeps_what_it_has(below: tuple[Rig, Tier]) -> None:
    """And is still written to: other engines read it, and it may be fast tomorrow."""
    it, tier = below
    chunk_takes(it, 0.002)
    sample(it, tier, 0.01)
    it.stored(B)
    assert [spill.tier for spill in it.settle()] == [tier]


def test_memory_is_not_asked_about(rig: Make, tmp_path: Path) -> None:
    """A copy beats any forward pass."""
    it = rig(tmp_path, measured=True, remote=True)
    it.stored(A)
    assert it.pool.lookup(A, "r") is HIT
    assert it.load(A).fetch_s == 0.0


def test_a_load_may_take_what_computing_takes(rig: Make) -> None:
    """Its budget grows with the fetched chunks, not with those in memory, up to the time-out."""
    it = rig(measured=True, remote=True)
    chunk_takes(it, 0.2)
    sample(it, Tier.REMOTE, 0.001)
    it.stored(C)
    it.presence.remote |= {A, B}
    assert it.load(A, B, C).fetch_s == pytest.approx(0.4 * BUDGET_SLACK)


def test_parts_of_several_groups_are_computed_at_once(rig: Make) -> None:
    """A hybrid model has a part of a chunk in each KV group. The budget is that of the tokens."""
    it = rig(slots=8, measured=True, remote=True)
    chunk_takes(it, 0.2)
    sample(it, Tier.REMOTE, 0.001)
    parts = [key[:-1] + bytes([group]) for key in (A, B) for group in range(3)]
    it.presence.remote |= set(parts)
    assert it.load(*parts).fetch_s == pytest.approx(0.4 * BUDGET_SLACK)


def test_loads_that_queue_make_way_for_computing(rig: Make) -> None:
    """A load waits behind those that were begun before it, in its tier; when they ended, the next one is begun."""
    it = rig(measured=True, remote=True, slots=16)
    chunk_takes(it, 0.1)
    sample(it, Tier.REMOTE, 0.06)
    keys = KEYS[:8]
    it.presence.remote |= set(keys)
    it.hits(*keys)
    it.step()

    def answers(req_id: str, *asked: bytes, prefill_tokens: int = 0) -> list[Lookup]:
        it.pool.lookups.scan_begins(len(asked), Busy(prefill_tokens))
        return [it.pool.lookup(key, req_id) for key in asked]

    assert answers("first", *keys[:4]) == [HIT] * 4
    it.pool.begin_load(keys[:4], "first")
    it.step()
    assert answers("second", *keys[4:6]) == [MISS] * 2
    assert it.pool.counts["remote hit computed sooner than loaded"] == 2
    assert answers("third", *keys[4:6], prefill_tokens=4 * 64) == [HIT] * 2
    it.step()
    it.pool.end_load("first")
    assert answers("last", *keys[4:6]) == [HIT] * 2


def test_admission_can_be_turned_off(rig: Make) -> None:
    """Every hit is loaded then, and nothing is waited for."""
    it = rig(remote=True)
    chunk_takes(it, 0.002)
    sample(it, Tier.REMOTE, 0.01)
    it.presence.remote.add(A)
    assert it.load(A).fetch_s == 5.0


# ---- requests that wait --------------------------------------------------------------------------------------------


def test_a_waiting_request_costs_one_answer_per_group_and_step(rig: Make) -> None:
    """RETRY defers it, and the MISS after it ends the scan of the group. Its keys are not looked at."""
    it = rig(remote=True)
    it.presence.hung = True
    assert [it.pool.lookup(key, "r") for key in (*G0, *G1)] == [RETRY] * 8  # all are asked
    for _ in range(2):
        it.step()
        assert [it.pool.lookup(key, "r") for key in G0[:2]] == [RETRY, MISS]
        assert [it.pool.lookup(key, "r") for key in G1[:2]] == [RETRY, MISS]
    it.stored(G0[0])
    it.step()
    assert it.pool.lookup(G0[0], "r") is RETRY
    assert it.pool.lookup(G0[0], "other") is HIT


def test_a_waiting_request_is_looked_up_anew_when_the_store_answered(rig: Make) -> None:
    """All that wait are, once."""
    it = rig(remote=True)
    it.presence.remote |= set(G0)
    it.presence.hung = True
    for req_id in ("r0", "r1"):
        assert it.pool.lookup(G0[0], req_id) is RETRY
    it.step()
    it.presence.hung = False
    assert it.pool.lookup(G0[0], "r0") is RETRY
    it.step()
    assert [it.pool.lookup(G0[0], req_id) for req_id in ("r0", "r1")] == [HIT, HIT]


def test_a_request_that_waits_for_anothers_fetch_goes_on_with_its_end(rig: Make) -> None:
    """PENDING, cut short meanwhile, then a hit."""
    it = rig(remote=True)
    it.presence.remote.add(G0[0])
    it.load(G0[0])
    assert it.pool.lookup(G0[0], "other") is PENDING
    it.step()
    assert [it.pool.lookup(key, "other") for key in G0[:2]] == [RETRY, MISS]
    it.pool.end_load("r")
    it.step()
    assert it.pool.lookup(G0[0], "other") is HIT


@pytest.mark.parametrize("what", ["reports", "reset", "lost"])
def test_a_request_that_waits_for_the_store(rig: Make, what: str) -> None:
    """What the ranks say cannot change its answer, so its keys are not looked up again; a reset and the loss of the store do."""
    it = rig(remote=True)
    it.presence.hung = True
    assert it.pool.lookup(G0[0], "r") is RETRY
    it.step()
    it.presence.asked.clear()
    match what:
        case "reset":
            it.pool.reset()
        case "lost":
            it.presence.lose()
        case _:
            it.stored(G0[0])
            sample(it, Tier.REMOTE, 1.0)
    expected = {"reset": [RETRY, RETRY], "lost": [MISS, MISS], "reports": [RETRY, MISS]}[what]
    assert [it.pool.lookup(key, "r") for key in G0[:2]] == expected
    assert it.presence.asked == (G0[:2] if what == "reset" else [])


def test_a_request_that_waits_for_a_load_is_looked_up_anew_after_reports(rig: Make) -> None:
    """What the ranks say may change its answer."""
    it = rig(remote=True)
    it.presence.remote.add(G0[0])
    transfer = it.load(G0[0])
    assert it.pool.lookup(G0[0], "other") is PENDING
    it.step()
    it.pool.on_reports(Reports(failed={transfer.ticket: {0}}, lost={transfer.ticket: {0}}))
    assert it.pool.lookup(G0[0], "other") is PENDING  # and not the answer of the step before


def test_groups_with_a_window_are_asked_about_as_such(rig: Make) -> None:
    """And the store is told which questions are about the head of a prompt: without a hit there, the request has none."""
    it = rig(remote=True, slots=8)
    it.pool.lookups.set_windows({G1[0][-4:]: 3})
    it.stored(G0[0])
    it.pool.lookups.scan_begins(4, IdleEngine())
    assert [it.pool.lookup(key, "r") for key in (*G0, *G1)] == [HIT, *[RETRY] * 7]
    it.pool.lookups.scan_begins(4, IdleEngine())
    other = [bytes([9]) * 8, bytes([10]) * 8]
    assert [it.pool.lookup(key, "other") for key in other] == [RETRY] * 2
    assert [it.presence.windows[key] for key in (G0[1], G1[0], other[0])] == [None, 3, None]
    assert [it.presence.heads[key] for key in (G0[1], other[0])] == [False, True]


def test_what_the_store_refused_is_counted(rig: Make) -> None:
    """By its own name, and what says that another server should be talked to reaches the scheduler's connection."""
    it = rig(remote=True)
    it.presence.counted["store refused NOPERM"] = 2
    it.step()
    assert it.pool.counts["store refused NOPERM"] == 2
    it.pool.on_reports(Reports(counts=Counter({"store refused OOM": 1})))
    assert it.presence.redials == 0
    it.pool.on_reports(Reports(counts=Counter({"store refused READONLY": 1})))
    assert it.presence.redials == 1


def test_a_finished_request_waits_no_longer(rig: Make) -> None:
    """Aborted in mid-lookup: nothing of it is remembered, and lookups are quick again."""
    it = rig(remote=True)
    it.presence.hung = True
    assert it.pool.lookup(A, "r") is RETRY
    assert it.pool.lookups.exceptional
    it.pool.forget_request("r")
    it.step()
    assert not it.pool.lookups.exceptional


# ---- verification --------------------------------------------------------------------------------------------------


def test_a_picked_request_is_computed_and_compared(rig: Make) -> None:
    """It misses what is there; its store compares what is resident and stores what is not."""
    it = rig(verify_one_in=1)
    first = it.stored(A, B)
    assert [it.pool.lookup(key, "r") for key in (A, B)] == [MISS, MISS]
    transfer = it.pool.begin_store([A, B, C], "r")
    assert (transfer.keys, transfer.slots[:2], transfer.compared) == ((A, B, C), first.slots, frozenset({0, 1}))
    assert [it.pool.lookup(key, "other") for key in (A, C)] == [MISS, MISS]
    it.changes()
    it.pool.end_store(transfer.keys)
    assert it.changes() == [(Tier.MEMORY, "stored", (C,))]
    assert (it.references, it.pool.counts["chunks stored"]) == (0, 3)


def test_one_in_so_many_requests_that_hit_is_picked(rig: Make) -> None:
    """Decided at its first hit, for all its keys. Requests without hits do not count."""
    it = rig(verify_one_in=3)
    it.stored(A, B)
    assert it.pool.lookup(C, "none") is MISS
    answers = [[it.pool.lookup(key, f"r{n}") for key in (A, B)] for n in range(6)]
    assert answers == [[HIT] * 2, [HIT] * 2, [MISS] * 2] * 2


def test_a_block_that_is_read_meanwhile_may_be_compared(rig: Make) -> None:
    """It stays where it is, and is still a hit for others."""
    it = rig(verify_one_in=2)
    it.stored(A)
    it.load(A, req_id="r0")
    assert it.pool.lookup(A, "r1") is MISS
    transfer = it.pool.begin_store([A], "r1")
    assert it.pool.lookup(A, "r2") is HIT
    it.pool.end_load("r0")
    it.pool.end_store(transfer.keys)
    assert (it.references, it.pool.lookup(A, "r2")) == (0, HIT)


def test_a_block_is_compared_by_one_request_at_a_time(rig: Make) -> None:
    """vLLM completes stores by their keys: two of one key would be taken for each other."""
    it = rig(verify_one_in=1)
    it.stored(A)
    for req_id in ("r0", "r1"):
        assert it.pool.lookup(A, req_id) is MISS
    first, second = it.pool.begin_store([A, B], "r0"), it.pool.begin_store([A, C], "r1")
    assert (first.keys, second.keys) == ((A, B), (C,))
    it.pool.end_store(first.keys)
    it.pool.end_store(second.keys)
    assert (it.references, it.pool.jobs._running) == (0, {})


def test_a_block_that_is_compared_makes_no_room_for_its_own_chain(rig: Make) -> None:
    """The store goes as far as there is room."""
    it = rig(verify_one_in=1, slots=2)
    it.stored(A)
    assert it.pool.lookup(A, "r") is MISS
    transfer = it.pool.begin_store([A, B, C, D], "r")
    assert (transfer.keys, len(set(transfer.slots))) == ((A, B), 2)
    it.pool.end_store(transfer.keys)
    assert it.references == 0


def test_a_difference_closes_the_pool_down(rig: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is loaded, stored or given to other engines any more; a metric and the log say so."""
    it = rig(verify_one_in=1, remote=True)
    it.stored(A)
    assert it.pool.lookup(A, "r") is MISS
    transfer = it.pool.begin_store([A], "r")
    with caplog.at_level(logging.ERROR):
        it.pool.on_reports(Reports(differed={transfer.ticket: {0}}))
    it.pool.end_store(transfer.keys)
    assert it.pool.counts["verification mismatch"] == 1
    assert "1 recomputed chunks differ" in caplog.text
    assert it.pool.broken
    assert it.settle() == []


def test_a_difference_from_before_a_reset_is_dropped(rig: Make) -> None:
    """What differed is gone."""
    it = rig(verify_one_in=1)
    it.stored(A)
    it.pool.lookup(A, "r")
    transfer = it.pool.begin_store([A], "r")
    it.pool.reset()
    it.pool.on_reports(Reports(differed={transfer.ticket: {0}}))
    assert it.pool.broken == ""


# ---- closed down ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["write_through", "write_back"])
def test_a_broken_rank_closes_the_pool_down_for_good(rig: Make, policy: str, caplog: pytest.LogCaptureFixture) -> None:
    """Lookups miss and stores are refused. Said once. A reset mends no rank, and the rank does not say it again."""
    it = rig(remote=True, remote_policy=policy)
    it.stored(A, B, C)
    for _ in range(2):
        it.pool.on_reports(Reports(broken="no memory"))
    assert it.pool.broken == "no memory"
    assert caplog.text.count("loads and stores nothing") == 1
    assert [it.pool.lookup(key, "r") for key in (A, D)] == [MISS, MISS]
    assert it.pool.begin_store([D], "w").keys == ()
    assert it.settle() == []
    it.pool.reset()
    it.step()
    assert (it.pool.broken, it.pool.lookups.exceptional) == ("no memory", True)
    assert it.pool.begin_store([A], "r").keys == ()
    assert it.pool.lookup(A, "r") is MISS


def test_a_reset_mends_a_difference(rig: Make) -> None:
    """What differed is gone, so loading and storing begin anew."""
    it = rig()
    it.pool.close_down("a difference", "reset")
    it.pool.reset()
    it.step()
    assert (it.pool.broken, it.pool.lookups.exceptional) == ("", False)
    it.stored(A)
    assert it.pool.lookup(A, "r") is HIT


def test_what_runs_ends_in_a_closed_pool(rig: Make) -> None:
    """Loads, stores and spills give their slots back."""
    it = rig(remote=True, slots=8)
    it.stored(A)
    (spill,) = it.step().spills
    it.load(A)
    store = it.pool.begin_store([B], "w")
    it.pool.on_reports(Reports(broken="no memory"))
    it.pool.end_load("r")
    it.pool.end_store(store.keys)
    it.report(spill)
    assert (it.references, it.pool.jobs._running, it.settle()) == (0, {}, [])
