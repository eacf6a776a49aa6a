"""Which eviction policy serves prefix caches best: hit rates on made traces, the pool's own index against simulators.

    python -m bench.policies [--seeds 5]

A request is a chain of blocks. It hits as far as its blocks are there from the head on (a block behind a gap cannot be used),
then the missing ones are stored. Counted: hit blocks over asked blocks, after a warm-up of a fifth of the trace. The policies
of ``kvpool_connector.tiers.policy`` run in the real :class:`SlotIndex`; the others here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import json
import random
import statistics
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from kvpool_connector.tiers.policy import Floats, Lru, Policy, Slru
from kvpool_connector.tiers.slots import SlotIndex, State

Chain = list[bytes]
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "policies.svg"


def chain(*parts: tuple[object, int]) -> Chain:
    """Keys of a prompt: each part is a text's name and its blocks; a key depends on all that precedes it."""
    keys, name = [], ""
    for text, blocks in parts:
        name += f"/{text}"
        keys += [hashlib.blake2b(f"{name}:{block}".encode(), digest_size=12).digest() for block in range(blocks)]
    return keys


# ---- traces ----------------------------------------------------------------------------------------------------


def loop(rng: random.Random) -> Iterator[Chain]:
    """40 documents of 25 to 75 blocks (2000 in all), one after the other, 15 times, each with a question of its own."""
    documents = [(f"doc{number}", rng.randint(25, 75)) for number in range(40)]
    for turn in range(15):
        for document in documents:
            yield chain(document, (f"question{turn}", 1))


def zipf(rng: random.Random) -> Iterator[Chain]:
    """200 documents of 10 to 90 blocks (10 000 in all) by Zipf 0.9; every fourth request is a one-off of 50 to 150 blocks."""
    documents = [(f"doc{number}", rng.randint(10, 90)) for number in range(200)]
    weights = [1 / (rank + 1) ** 0.9 for rank in range(200)]
    for number in range(1500):
        if rng.random() < 0.25:
            yield chain((f"scan{number}", rng.randint(50, 150)))
        else:
            yield chain(rng.choices(documents, weights)[0], (f"question{number}", 2))


def turns(rng: random.Random) -> Iterator[Chain]:
    """Conversations behind 4 system prompts of 20 blocks: 1 to 12 turns of 3 to 20 new blocks; 60 are open at a time.

    Every fifth request is a one-off, as of a batch job. Conversations are taken up at random, the last one more often.
    """
    systems = [(f"system{number}", 20) for number in range(4)]
    serial = itertools.count()

    def begin() -> tuple[list[tuple[object, int]], int]:
        return [rng.choice(systems)], rng.randint(1, 12)

    talks = [begin() for _ in range(60)]
    for number in range(1800):
        if rng.random() < 0.2:
            yield chain(rng.choice(systems), (f"job{number}", rng.randint(20, 80)))
            continue
        place = min(int(rng.expovariate(1 / 15)), len(talks) - 1)
        parts, left = talks.pop(place)
        parts = [*parts, (f"turn{next(serial)}", rng.randint(3, 20))]
        yield chain(*parts)
        talks.insert(0, (parts, left - 1)) if left > 1 else talks.append(begin())


TRACES: dict[str, Callable[[random.Random], Iterator[Chain]]] = {"loop": loop, "zipf + scans": zipf, "turns": turns}
SIZES = {"loop": (500, 1000, 1500), "zipf + scans": (1000, 2500, 5000), "turns": (1000, 2000, 4000)}


# ---- caches ----------------------------------------------------------------------------------------------------


class Cache(Protocol):
    """What serves a trace."""

    def request(self, keys: Chain) -> int:
        """Blocks hit from the head on; afterwards the chain is stored as far as it goes."""


class Indexed:
    """The pool's index with a policy."""

    def __init__(self, slots: int, policy: Policy) -> None:
        self.index = SlotIndex(slots, policy)

    def request(self, keys: Chain) -> int:
        """See :class:`Cache`."""
        index = self.index
        found = [index.find(key) for key in keys]
        hits = next((place for place, slot in enumerate(found) if slot is None), len(keys))
        slots = [slot for slot in found[:hits] if slot is not None]
        index.touch(slots)
        index.pin(slots)
        for key in keys[hits:]:
            slot = index.find(key)
            if slot is None:
                slot = index.add(key, State.STORING)
                if slot is None:
                    break
            index.pin([slot])
            slots.append(slot)
        index.release(slots, now=State.READY)
        index.touch(slots[hits:], after=slots[hits - 1] if hits else None)
        return hits


Queue = OrderedDict[bytes, int]


class Simulated:
    """A policy block by block, a chain tail first. As in the index, a chain in use is never evicted for its own blocks."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.busy: set[bytes] = set()

    def request(self, keys: Chain) -> int:
        """See :class:`Cache`."""
        hits = next((place for place, key in enumerate(keys) if key not in self), len(keys))
        self.busy = set(keys)
        for key in reversed(keys):
            self.access(key)
        return hits

    def __contains__(self, key: bytes) -> bool:
        raise NotImplementedError

    def access(self, key: bytes) -> None:
        """Use a block; store it if it is not there."""
        raise NotImplementedError

    def pop(self, queue: Queue) -> tuple[bytes, int] | None:
        """Take the oldest block that is not in use."""
        key = next((key for key in queue if key not in self.busy), None)
        return None if key is None else (key, queue.pop(key))


class S3Fifo(Simulated):
    """S3-FIFO (SOSP '23): a small queue of a tenth, a main queue with a two-bit count, ghosts."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.small, self.main, self.ghosts = Queue(), Queue(), Queue()

    def __contains__(self, key: bytes) -> bool:
        return key in self.small or key in self.main

    def access(self, key: bytes) -> None:
        """See :class:`Simulated`."""
        if key in self:
            queue = self.small if key in self.small else self.main
            queue[key] = min(queue[key] + 1, 3)
            return
        while len(self.small) + len(self.main) >= self.slots:
            if not self._evict():
                return
        target = self.small if self.ghosts.pop(key, None) is None else self.main
        target[key] = 0

    def _evict(self) -> bool:
        first = len(self.small) >= self.slots // 10 or not self.main
        for queue in (self.small, self.main) if first else (self.main, self.small):
            taken = self.pop(queue)
            if taken is None:
                continue
            key, uses = taken
            if uses:
                self.main[key] = uses - (queue is self.main)
            elif queue is self.small:
                self.ghosts[key] = 1
                if len(self.ghosts) > self.slots:
                    self.ghosts.popitem(last=False)
            return True
        return False


class Arc(Simulated):
    """ARC (FAST '03): once used and often used, the border between them moved by ghosts."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.target = 0.0
        self.once, self.often, self.ghosts_once, self.ghosts_often = Queue(), Queue(), Queue(), Queue()

    def __contains__(self, key: bytes) -> bool:
        return key in self.once or key in self.often

    def access(self, key: bytes) -> None:
        """See :class:`Simulated`."""
        one, many = len(self.ghosts_once), len(self.ghosts_often)
        again = True
        if key in self:
            self.once.pop(key, None)
            self.often.pop(key, None)
        elif key in self.ghosts_once:
            self.target = min(self.slots, self.target + max(many / one, 1))
        elif key in self.ghosts_often:
            self.target = max(0, self.target - max(one / many, 1))
        else:
            again = False
        if len(self.once) + len(self.often) >= self.slots and not self._replace(key in self.ghosts_often):
            return
        self.ghosts_once.pop(key, None)
        self.ghosts_often.pop(key, None)
        (self.often if again else self.once)[key] = 1
        while len(self.once) + len(self.ghosts_once) > self.slots and self.ghosts_once:
            self.ghosts_once.popitem(last=False)
        while len(self.ghosts_once) + len(self.ghosts_often) > self.slots:
            (self.ghosts_often or self.ghosts_once).popitem(last=False)

    def _replace(self, from_often: bool) -> bool:
        first = len(self.once) > self.target or (from_often and len(self.once) == self.target)
        order = [(self.once, self.ghosts_once), (self.often, self.ghosts_often)]
        for queue, ghosts in order if first else reversed(order):
            taken = self.pop(queue)
            if taken is not None:
                ghosts[taken[0]] = 1
                return True
        return False


class Scored:
    """A score for the index, as a function of age, uses and depth."""

    def __init__(self, function: Callable[[Floats, Floats, Floats], Floats]) -> None:
        self.scores = function


POLICIES: dict[str, Callable[[int], Cache]] = {
    "lru": lambda slots: Indexed(slots, Lru()),
    "slru": lambda slots: Indexed(slots, Slru()),
    "slru, flat": lambda slots: Indexed(slots, Slru(depth=0)),
    "ARC": Arc,
    "S3-FIFO": S3Fifo,
    "age / uses": lambda slots: Indexed(slots, Scored(lambda age, uses, depth: -age / uses)),
    "Marconi-like": lambda slots: Indexed(slots, Scored(lambda age, uses, depth: -age + uses / (1 + 100 * depth))),
}


# ---- the run ---------------------------------------------------------------------------------------------------


def hit_rate(cache: Cache, trace: Sequence[Chain]) -> float:
    """Share of asked blocks that hit, after the warm-up."""
    hits = asked = 0
    for number, keys in enumerate(trace):
        got = cache.request(keys)
        if number >= len(trace) // 5:
            hits += got
            asked += len(keys)
    return hits / asked


Rates = dict[tuple[str, str, int], list[float]]


def measure(seeds: int) -> Rates:
    """Hit rates by policy, trace and slots; one per seed."""
    rates: Rates = {}
    for seed in range(seeds):
        for trace, make in TRACES.items():
            requests = list(make(random.Random(seed)))  # noqa: S311
            for slots, (name, cache) in itertools.product(SIZES[trace], POLICIES.items()):
                rates.setdefault((name, trace, slots), []).append(hit_rate(cache(slots), requests))
        print(f"seed {seed} of {seeds} done", file=sys.stderr)
    return rates


def table(rates: Rates) -> str:
    """Median in per cent, and half the distance from lowest to highest."""
    columns = [(trace, slots) for trace in TRACES for slots in SIZES[trace]]
    lines = [" " * 13 + "".join(f"{trace:^27}" for trace in TRACES)]
    lines.append(f"{'slots':13}" + "".join(f"{slots:>9}" for _, slots in columns))
    for name in POLICIES:
        cells = ""
        for trace, slots in columns:
            values = rates[name, trace, slots]
            cells += f"{100 * statistics.median(values):5.1f} ±{50 * (max(values) - min(values)):<2.0f}"
        lines.append(f"{name:13}{cells}")
    return "\n".join(lines)


def plot(rates: Rates, path: Path) -> bool:
    """Draw the medians; False where matplotlib is not installed."""
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")  # not among the pins
    except ImportError:
        return False
    figure, axes = pyplot.subplots(1, len(TRACES), figsize=(12, 4), sharey=True)
    for axis, trace in zip(axes, TRACES, strict=True):
        for name in POLICIES:
            medians = [100 * statistics.median(rates[name, trace, slots]) for slots in SIZES[trace]]
            axis.plot(SIZES[trace], medians, marker="o", label=name)
        axis.set(title=trace, xlabel="slots")
    axes[0].set_ylabel("blocks hit, %")
    axes[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    return True


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="traces of each kind (default 5)")
    seeds: int = parser.parse_args().seeds
    rates = measure(seeds)
    print(table(rates))
    if plot(rates, FIGURE):
        print(f"drawn: {FIGURE}")
    figures = {"/".join(map(str, key)): [round(value, 4) for value in values] for key, values in rates.items()}
    print("bench-figures: " + json.dumps({"n": seeds, "hit_rates": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
