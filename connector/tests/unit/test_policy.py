"""Eviction policies in the index that they serve: chains, scans, loops, and what it all costs."""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from array import array

import numpy as np
import pytest

from kvpool_connector.tiers.policy import Lru, make_policy
from kvpool_connector.tiers.slots import SlotIndex, State

NAMES = ["lru", "slru"]


def key_of(name: object) -> bytes:
    """36 bytes, as vLLM's: a SHA-256 and a group's number."""
    return hashlib.sha256(str(name).encode()).digest() + bytes(4)


def chain_of(name: str, blocks: int) -> list[bytes]:
    """Keys of a prompt."""
    return [key_of(f"{name}/{block}") for block in range(blocks)]


def request(index: SlotIndex, keys: list[bytes], part: int = 10_000) -> int:
    """Use what is there from the head on and store the rest, part by part; blocks that hit."""
    found = [index.find(key) for key in keys]
    hits = found.index(None) if None in found else len(keys)
    slots = [slot for slot in found[:hits] if slot is not None]
    index.touch(slots)
    index.pin(slots)
    for begin in range(hits, len(keys), part):
        new = []
        for key in keys[begin : begin + part]:
            slot = index.find(key)
            slot = index.add(key, State.STORING) if slot is None else slot
            assert slot is not None
            new.append(slot)
        index.pin(new)
        index.touch(new, after=slots[-1] if slots else None)
        slots += new
    index.release(slots, State.READY)
    return hits


def prefix(index: SlotIndex, keys: list[bytes]) -> int:
    """Blocks that would hit; asserts that none lies behind a gap."""
    there = [key in index for key in keys]
    assert there == sorted(there, reverse=True), "a block outlived one before it"
    return sum(there)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [1, 3, 100])
def test_the_tail_goes_before_the_head(name: str, part: int) -> None:
    """Of chains that grow part by part, in a tier that is too small, whatever else is stored."""
    index = SlotIndex(60, make_policy(name))
    chains = [chain_of(f"chain{number}", 25) for number in range(4)]
    for blocks in range(5, 26, 5):
        for keys in chains:
            request(index, keys[:blocks], part)
            for each in chains:
                prefix(index, each)
    for number in range(40):
        request(index, [key_of(f"other{number}")])
        for keys in chains:
            prefix(index, keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_chain_is_touched_after_its_parts(name: str) -> None:
    """Then the depth goes on from the head's, also for parts that came without what was before them."""
    index = SlotIndex(12, make_policy(name))
    keys = chain_of("chain", 9)
    slots = []
    for begin in range(0, 9, 3):
        part = [slot for key in keys[begin : begin + 3] if (slot := index.add(key, State.READY)) is not None]
        index.touch(part)
        slots += part
        index.touch(slots, new_request=False)
    assert index.coldest(9) == slots[::-1]
    index.touch(slots[6:])  # a part, as when the head was in KV memory
    index.touch(slots, new_request=False)
    assert index.coldest(9) == slots[::-1]


def test_a_deep_part_stays_deep() -> None:
    """Also if it is touched alone: for slru it is still colder than a head that was used a little earlier."""
    index = SlotIndex(12, make_policy("slru"))
    slots = [slot for key in chain_of("chain", 9) if (slot := index.add(key, State.READY)) is not None]
    index.touch(slots)
    head = index.add(key_of("other"), State.READY)
    assert head is not None
    index.touch(slots[6:], new_request=False)
    index.add(key_of("later"), State.READY)
    coldest = index.coldest(12)
    assert coldest.index(slots[6]) < coldest.index(head)


def test_a_part_is_never_worth_more_than_what_precedes_it() -> None:
    """However often it was used alone."""
    index = SlotIndex(12, make_policy("slru"))
    slots = [slot for key in chain_of("chain", 9) if (slot := index.add(key, State.READY)) is not None]
    for _ in range(3):
        index.touch(slots[6:])
    index.touch(slots[:6])
    index.touch(slots[6:], after=slots[5])
    assert index.coldest(9) == slots[::-1]


def test_one_request_counts_once() -> None:
    """However often it touches its blocks: still a one-off, which goes before what two requests used."""
    index = SlotIndex(10, make_policy("slru"))
    shared, once = (index.add(key_of(name), State.READY) for name in ("shared", "once"))
    assert shared is not None
    assert once is not None
    index.touch([shared])
    index.touch([shared])
    index.touch([once])
    for _ in range(5):
        index.touch([once], new_request=False)
    assert index.coldest(2) == [once, shared]


def test_lru_is_flushed_by_a_scan_and_slru_is_not() -> None:
    """One-off prompts, three times the size of the tier; what was used twice before stays."""
    left = {}
    for name in NAMES:
        index = SlotIndex(400, make_policy(name))
        shared = [chain_of(f"document{number}", 40) for number in range(5)]
        for _ in range(2):
            for keys in shared:
                request(index, keys)
        for number in range(24):
            request(index, chain_of(f"scan{number}", 50))
        left[name] = sum(prefix(index, keys) for keys in shared)
    assert left == {"lru": 0, "slru": 200}


def test_slru_hits_in_a_loop_that_does_not_fit() -> None:
    """LRU evicts each block just before it is needed."""
    hits = {}
    for name in NAMES:
        index = SlotIndex(900, make_policy(name))
        rounds = [sum(request(index, chain_of(f"document{number}", 50)) for number in range(24)) for _ in range(8)]
        hits[name] = sum(rounds[4:]) / (4 * 24 * 50)
    assert hits["lru"] == 0
    assert hits["slru"] > 0.1


def test_slru_lets_go_of_what_is_no_longer_used() -> None:
    """Blocks that were popular once do not keep new ones out for ever."""
    index = SlotIndex(200, make_policy("slru"))
    old = chain_of("old", 150)
    for _ in range(5):
        request(index, old)
    for number in range(60):
        for _ in range(2):
            request(index, chain_of(f"new{number}", 20))
    assert prefix(index, old) == 0


def test_a_name_that_is_unknown() -> None:
    """Says which there are."""
    with pytest.raises(ValueError, match=r"'fifo'.*lru, slru"):
        make_policy("fifo")


@pytest.mark.parametrize("slots", [1000, 150_000])
def test_victims_in_large_tiers_are_among_the_coldest(slots: int) -> None:
    """Batches and windows cost exactness, but not much: the first twentieth comes out of the coldest fifteenth."""
    index = SlotIndex(slots, Lru())
    for number in range(slots):
        index.restore(number.to_bytes(3, "little"), number)
    evicted: list[tuple[bytes, int]] = []
    for number in range(slots // 20):
        assert index.add(b"new" + number.to_bytes(3, "little"), State.STORING, evicted) is not None
        if number == slots // 40:
            coldest = index.coldest(5)
    assert max(slot for _, slot in evicted) < slots // 15
    assert [slot for _, slot in evicted[slots // 40 + 1 :][:5]] == coldest
    assert len(evicted) == slots // 20


def test_a_slot_used_since_its_batch_was_made_stays() -> None:
    """Victims are chosen in batches; a later use takes a slot out, a later state too."""
    index = SlotIndex(640, Lru())
    for number in range(640):
        index.restore(key_of(number), number)
    evicted: list[tuple[bytes, int]] = []
    index.add(key_of("first"), State.READY, evicted)
    touched, pinned, dirty, following = index.coldest(4)
    index.touch([touched])
    index.pin([pinned])
    index.dirty[dirty] = 1
    index.add(key_of("second"), State.READY, evicted)
    assert [slot for _, slot in evicted] == [0, following]


def test_memory_per_key() -> None:
    """At most 200 bytes with the key, also after the tier was turned over."""
    slots = 100_000
    tracemalloc.start()
    try:
        index = SlotIndex(slots, make_policy("slru"))
        number = 0
        for turn in range(2):
            for _ in range(slots):
                assert index.add(hashlib.sha256(b"%d" % number).digest() + b"\0\0\0\0", State.READY) is not None
                number += 1
            size = tracemalloc.get_traced_memory()[0] / slots
            print(f"after turn {turn}: {size:.1f} bytes per key")  # noqa: T201
            assert size <= 200
    finally:
        tracemalloc.stop()  # it would slow all tests that follow


def plain_lookups_s(places: dict[bytes, int], asked: list[bytes]) -> float:
    """Return the processor time in which a dictionary gives as many answers on this host."""
    start = time.thread_time()
    slots = array("I")
    for key in asked:
        slot = places.get(key)
        if slot is not None:
            slots.append(slot)
    return time.thread_time() - start


def lookups_s(index: SlotIndex, asked: list[bytes]) -> float:
    """Return the processor time of all calls of a request whose keys all hit."""
    start = time.thread_time()
    find, good, slots = index.find, index.good, array("I")
    for key in asked:
        slot = find(key)
        if slot is not None and good[slot]:
            slots.append(slot)
    index.touch(slots)
    index.pin(slots)
    index.release(slots)
    took = time.thread_time() - start
    assert len(slots) == len(asked)
    return took


def test_time_of_a_long_prompt() -> None:
    """A request of 8000 keys that hit takes twice the time of a plain dictionary, and no more than four times it.

    That is 2.5 ms of processor time where a dictionary takes 1.2. Hosts differ by a factor of four and more.
    """
    index = SlotIndex(20_000, make_policy("slru"))
    keys = [key_of(number) for number in range(20_000)]
    for key in keys:
        index.add(key, State.READY)
    places = {key: number for number, key in enumerate(keys)}
    ratios = []
    for begin in range(0, 12_000, 400):
        # Copies: of none of them a hash is known yet.
        first, second = ([bytes(bytearray(key)) for key in keys[begin : begin + 8000]] for _ in range(2))
        ratios.append(lookups_s(index, first) / plain_lookups_s(places, second))
    print(f"8000 keys: {np.median(ratios):.2f} times a dictionary's time")  # noqa: T201
    assert np.median(ratios) < 4


def test_time_of_evictions_in_a_large_tier() -> None:
    """No call may stop the scheduler: the goal is 1 ms of processor time; three times that for all but the slowest few.

    The best of three tries: on a machine that others use, what they left in its caches costs processor time, too. A
    host whose dictionary takes longer than the 1.2 ms of the one that the goals are for may take longer in proportion.
    """
    places = {key_of(number): number for number in range(8000)}
    slowness = max(1.0, min(plain_lookups_s(places, [key_of(n) for n in range(8000)]) for _ in range(5)) / 1.2e-3)
    slots = 500_000
    index = SlotIndex(slots, make_policy("slru"))
    for number in range(slots):
        index.restore(key_of(number), number)
    index.add(key_of("first"), State.READY)

    def evictions(attempt: int) -> tuple[float, float]:
        """The mean in microseconds, and the fifth slowest in milliseconds."""
        keys = [key_of(f"new{attempt}-{number}") for number in range(30_000)]
        times = []
        for key in keys:
            start = time.thread_time()
            index.add(key, State.READY)
            times.append(time.thread_time() - start)
        times.sort()
        mean, slow = 1e6 * sum(times) / len(times), 1e3 * times[-5]
        print(f"an eviction: mean {mean:.1f} µs, the fifth slowest of {len(times)} {slow:.2f} ms")  # noqa: T201
        return mean, slow

    tries = [evictions(attempt) for attempt in range(3)]
    assert min(mean for mean, _ in tries) < 30 * slowness
    assert min(slow for _, slow in tries) < 3 * slowness
    index.pin(range(slots))
    start = time.thread_time()
    assert index.add(key_of("none"), State.READY) is None
    print(f"nothing to evict: {1e3 * (time.thread_time() - start):.2f} ms")  # noqa: T201
