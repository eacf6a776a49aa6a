"""In which order keys are asked about, and where that ends: without a store."""

from __future__ import annotations

import gc

import pytest

from kvpool_connector.scheduler import questions
from kvpool_connector.scheduler.questions import GROWTH, HEAD, SHARD, Chain, Verdicts

KEYS = [b"%05d" % number for number in range(20_000)]


def asked(chain: Chain, present: set[bytes]) -> list[int]:
    """Sizes of the rounds of a chain, with the answers of a store that holds this."""
    sizes: list[int] = []
    going_on = True
    while going_on:
        keys = chain.next_round()
        sizes.append(len(keys))
        going_on = chain.take([key in present for key in keys])
    chain.end()
    return sizes


def chain_of(count: int, window: int | None = None) -> Chain:
    chain = Chain(window)
    chain.keys = tuple(KEYS[:count])
    return chain


@pytest.mark.parametrize(
    ("count", "there", "rounds"),
    [
        (1, 0, [1]),
        (5, 5, [5]),
        (4096, 0, [HEAD]),
        (4096, HEAD - 1, [HEAD]),
        (4096, HEAD, [HEAD, HEAD * (GROWTH - 1)]),
        (4096, 4096, [32, 224, 1792, 2048]),
        (20_000, 20_000, [32, 224, 1792, 14336, 3616]),
    ],
)
def test_rounds_of_a_prefix(count: int, there: int, rounds: list[int]) -> None:
    """They grow, and end with the first key that is absent. What was not asked about is unknown."""
    chain = chain_of(count)
    assert asked(chain, set(KEYS[:there])) == rounds
    assert chain.answers == {key: number < there for number, key in enumerate(KEYS[: sum(rounds)])}


def test_rounds_of_a_window() -> None:
    """They go on over keys that are absent, and end with enough in a row."""
    chain = chain_of(4096, window=40)
    present = set(KEYS[100:130]) | set(KEYS[200:240]) | set(KEYS[300:])
    assert asked(chain, present) == [32, 224]
    assert asked(chain_of(300, window=40), set()) == [32, 224, 44]


def test_a_window_behind_a_head_that_is_absent_is_futile() -> None:
    head, tail = chain_of(3), Chain(2)
    tail.after = (head,)
    futile = [tail.futile]
    head.take([False, True, True])
    futile.append(tail.futile)
    other = chain_of(3)
    other.take([True, False, False])
    tail.after = (other,)
    futile.append(tail.futile)
    assert futile == [False, True, False]


def test_an_answer_counts_from_when_it_was_seen() -> None:
    """Not from when it came: a long step must not make it old before it is used."""
    chain = chain_of(2)
    chain.take([True, False])
    chain.end()
    chain.seen(100.0, 5, 1)
    chain.seen(104.0, 5, 1)  # by another question
    assert [chain.verdict(key, 100.0) for key in KEYS[:3]] == [True, False, None]
    assert [chain.verdict(key, 102.0) for key in KEYS[:2]] == [True, None]
    assert chain.verdict(KEYS[0], 105.0) is None


def test_what_was_given_up_is_absent_until_its_answer_comes() -> None:
    chain = chain_of(1)
    chain.until = 10.0
    assert chain.pending(9.9)
    assert not chain.pending(10.0)
    chain.give_up(10.0, 1)
    assert chain.verdict(KEYS[0], 10.5) is False
    assert chain.verdict(KEYS[0], 11.0) is None
    chain.take([True])
    chain.end()
    chain.seen(10.6, 5, 1)
    assert chain.verdict(KEYS[0], 10.6) is True


def told(keys: list[bytes]) -> Chain:
    """With its answers."""
    return Chain.told(keys, True)


def known(verdicts: Verdicts, keys: list[bytes]) -> list[bool]:
    """Whether each key has a chain."""
    numbers = [verdicts.shards[hash(key) & SHARD].get(key) for key in keys]
    return [number is not None and number in verdicts.chains for number in numbers]


def test_verdicts_go_in_their_order_but_not_before_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a key that was asked about once more stays with its newer chain."""
    monkeypatch.setattr(questions, "MOST_VERDICTS", 4)
    verdicts = Verdicts()
    verdicts.add(told(KEYS[:2]))
    pending = Chain()
    verdicts.begin(pending)
    pending.gathered += KEYS[1:6]
    pending.seal()
    for key in pending.keys:
        verdicts.shards[hash(key) & SHARD][key] = pending.number
    verdicts.sent(pending)
    verdicts.add(told(KEYS[6:8]))
    assert known(verdicts, KEYS[:8]) == [False] + [True] * 7
    verdicts.add(told(KEYS[8:9]))
    assert len(verdicts) == 8  # the pending one keeps its place, and all behind it
    pending.end(rest=False)
    verdicts.add(told(KEYS[9:10]))
    assert known(verdicts, KEYS[:10]) == [False] * 6 + [True] * 4
    assert len(verdicts.chains) == 3
    verdicts.clear()
    assert (len(verdicts), len(verdicts.chains), known(verdicts, KEYS)) == (0, 0, [False] * len(KEYS))


def test_the_garbage_collector_has_nothing_to_do_with_the_keys() -> None:
    """A full collection over 250 000 of them would stop the scheduler's thread."""
    verdicts = Verdicts()
    chain = Chain()
    verdicts.begin(chain)
    chain.gathered += KEYS
    chain.seal()
    for key in chain.keys:
        verdicts.shards[hash(key) & SHARD][key] = chain.number
    gc.collect()
    assert not gc.is_tracked(chain.keys)
    assert not any(gc.is_tracked(shard) for shard in verdicts.shards)
