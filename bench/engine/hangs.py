"""What a first token costs while something that the connector waits for hangs, at a GPU's pace.

    python -m bench.engine.hangs        (a part of `make bench-paced`)

An engine computes documents that nobody has (the comparison) and asks, in turn with these, for one
that a tier holds while that tier hangs: the store before it is asked and while it delivers, the disk
before it is read and while it is read, the nameserver at the engine's start, and the disk at the
engine's start, after which the rank runs without the cache. Store and disk are stopped by a signal;
the nameserver is a stand-in, a function that does not return. Needs root and /dev/fuse for the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import redis

from bench.spread import quartiles
from kvpool_connector.config.remote import Timeouts
from kvpool_connector.scheduler.admission import BUDGET_SLACK, SHARE_FOR_LOOKUP
from testkit.hanging_disk import CAN_MOUNT, HangingDisk
from testkit.paced.engine import PacedEngine, engine, tokens
from testkit.paced.profiles import PROFILES, Profile
from testkit.servers import KeyValueServer, wait_until

DOCUMENT = 8000
"""Tokens of a prompt: long enough that a hang can begin while it is delivered."""
PROFILE: Profile = dataclasses.replace(PROFILES["llama-8b-thick"], kv_heads=4, head_dim=64, device_tokens=4 * DOCUMENT)
"""8 KiB of KV a token."""
USUAL_LOADS = 3
"""Loads of which the median says how long one takes."""
MOST_LOADS = 12
"""So many loads are tried until one is admitted, since a busy machine may close a tier at first."""
PART_BYTES = 8 << 20
"""Delivered when a hang begins midway: an eighth of a document."""
ONE_DOCUMENT = "76Mi"
"""A memory tier in which the next document leaves nothing of the one before it."""
NAME = "store.kvpool.invalid"
SLACK_S = 0.3
"""What a hang may cost beyond the time-outs that are configured or measured."""


@dataclasses.dataclass
class Trials:
    """First tokens in seconds."""

    cold: list[float] = dataclasses.field(default_factory=list)
    hung: list[float] = dataclasses.field(default_factory=list)
    load: float = 0.0
    """Of a document that the tier delivered; 0 where there is no such tier."""

    def summary(self) -> dict[str, float]:
        """Return how long the longest first token was beyond the median of the cold ones."""
        _, cold, _ = quartiles(self.cold)
        low, median, high = quartiles(self.hung)
        return {
            "cold": cold,
            "hung": median,
            "hung_low": low,
            "hung_high": high,
            "load": round(self.load, 3),
            "longest_beyond_cold": round(max(self.hung) - cold, 3),
        }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="First tokens while something hangs")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each case")
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="kvpool-hangs-"))
    cases: dict[str, Callable[[], Trials]] = {
        "store, before it is asked": lambda: _store(folder, rounds, midway=False),
        "store, while it delivers": lambda: _store(folder, rounds, midway=True),
        "nameserver, from the start on": lambda: _nameserver(folder, rounds),
    }
    if CAN_MOUNT:
        cases |= {
            "disk, before it is read": lambda: _disk(folder, rounds, midway=False),
            "disk, while it is read": lambda: _disk(folder, rounds, midway=True),
            "disk, from the start on": lambda: _dead_rank(folder, rounds),
        }
    else:
        print("the disk is left out: it takes root and /dev/fuse", flush=True)
    figures: dict[str, dict[str, float]] = {}
    for name, measure in cases.items():
        figures[name] = measure().summary()
        print(f"{name:<32} {json.dumps(figures[name])}", flush=True)
    print(json.dumps({"hangs": figures, "bound_beyond_cold": bound(figures)}))
    return 0


def bound(figures: dict[str, dict[str, float]]) -> float:
    """Return what a hang may cost at most: the store's answer, a fetch's budget and some slack."""
    cold = max(figure["cold"] for figure in figures.values())
    timeouts = Timeouts()
    answer_s = max(timeouts.lookup_ms / 1000, SHARE_FOR_LOOKUP * cold)
    fetch_s = min(timeouts.fetch_ms / 1000, BUDGET_SLACK * cold)
    return round(answer_s + fetch_s + SLACK_S, 3)


class HangingTier:
    """What can be made to hang, from now on or once it has delivered a part of a document."""

    def __init__(
        self, hang: Callable[[], None], go_on: Callable[[], None], sent: Callable[[], int], figure: str
    ) -> None:
        """Args:
        sent: bytes that were delivered so far.
        figure: of the connector, 1 when the tier answers.
        """
        self._hang, self._go_on, self._sent, self.figure = hang, go_on, sent, figure

    @contextlib.contextmanager
    def hanging(self, *, midway: bool) -> Iterator[None]:
        """Let it hang until the end of the block."""
        over = threading.Event()
        watch = threading.Thread(target=self._when_it_delivers, args=(self._sent() + PART_BYTES, over))
        if midway:
            watch.start()
        else:
            self._hang()
        try:
            yield
        finally:
            over.set()
            if midway:
                watch.join()
            self._go_on()

    def _when_it_delivers(self, nbytes: int, over: threading.Event) -> None:
        while not over.is_set():
            if self._sent() > nbytes:
                self._hang()
                return
            time.sleep(0.001)


def first_token(paced: PacedEngine, document: int) -> float:
    """Ask for a document."""
    (answer,) = paced.generate([tokens(document, DOCUMENT)], max_tokens=4)
    return answer.first_token_s


def load_s(paced: PacedEngine) -> float:
    """Return how long the first token of a document takes that only the tier has.

    Raises:
        RuntimeError: it was computed nearly each time.
    """
    loads: list[float] = []
    for number in range(MOST_LOADS):
        _cold(paced, 50 + 2 * number)
        (answer,) = paced.generate([tokens(0, DOCUMENT)], max_tokens=4)
        if answer.cached_tokens > DOCUMENT // 2:
            loads.append(answer.first_token_s)
        if len(loads) == USUAL_LOADS:
            return statistics.median(loads)
    raise RuntimeError("no document was loaded: nothing can hang while one is")


def _rounds(paced: PacedEngine, rounds: int, tier: HangingTier, *, midway: bool) -> Trials:
    """Ask in turn for new documents and for the first one, which only the tier has, while that hangs.

    Args:
        midway: the hang begins when a part of the document was delivered.
    """
    first_token(paced, 0)
    trials = Trials(load=load_s(paced))
    for number in range(rounds):
        trials.cold += _cold(paced, 100 + 2 * number)
        with tier.hanging(midway=midway):
            trials.hung.append(first_token(paced, 0))
        wait_until(tier.figure, lambda: _is_back(paced, tier.figure), poll_s=0.2)
    return trials


def _cold(paced: PacedEngine, document: int) -> list[float]:
    """Ask for two documents that nobody has. Of what came before, memory holds nothing afterwards."""
    firsts = [first_token(paced, document), first_token(paced, document + 1)]
    paced.settle()
    paced.forget()
    return firsts


def _is_back(paced: PacedEngine, figure: str) -> bool:
    paced.generate([[5, 6, 7]], max_tokens=2)
    return paced.figure(figure) == 1


def _store(folder: Path, rounds: int, *, midway: bool) -> Trials:
    with KeyValueServer("redis") as store:
        kvpool = {"tiers": {"cpu": {"size": ONE_DOCUMENT}}, "remote": store.remote()}
        asked = redis.Redis(port=store.port)
        tier = HangingTier(
            store.pause,
            store.resume,
            lambda: int(asked.info("stats")["total_net_output_bytes"]),
            "kvpool:store_reachable",
        )
        with asked, engine(PROFILE, folder / "model", kvpool, separate=False) as paced:
            return _rounds(paced, rounds, tier, midway=midway)


def _disk(folder: Path, rounds: int, *, midway: bool) -> Trials:
    with HangingDisk() as disk:
        tiers = {"cpu": {"size": ONE_DOCUMENT}, "disk": {"path": str(disk.path), "size": "2Gi"}}
        tier = HangingTier(disk.hang, disk.go_on, disk.sent_bytes, "kvpool:disk_answers")
        with engine(PROFILE, folder / "model", {"tiers": tiers}, separate=False) as paced:
            return _rounds(paced, rounds, tier, midway=midway)


def _nameserver(folder: Path, rounds: int) -> Trials:
    """A store whose name is asked for and never found, against an engine without a store."""
    found = threading.Event()
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        if host == NAME:
            found.wait()
        return ask(host, *arguments, **named)

    remote = {"type": "redis", "host": NAME, "port": 6379}
    with mock.patch("socket.getaddrinfo", getaddrinfo):
        try:
            return _against_alone(folder, rounds, {"tiers": {"cpu": {"size": ONE_DOCUMENT}}, "remote": remote})
        finally:
            found.set()


def _dead_rank(folder: Path, rounds: int) -> Trials:
    """The disk hangs when the rank's half starts, so that it cannot; the scheduler's half is well."""
    with HangingDisk() as disk:
        disk.hang()
        tiers = {"cpu": {"size": ONE_DOCUMENT}, "disk": {"path": str(disk.path), "size": "2Gi"}}
        try:
            return _against_alone(folder, rounds, {"tiers": tiers, "on_failure": "continue"})
        finally:
            disk.go_on()


def _against_alone(folder: Path, rounds: int, kvpool: dict[str, Any]) -> Trials:
    """Documents that nobody has, asked of an engine of which something hangs, and of vLLM alone."""
    trials = Trials()
    for values, content in ((trials.hung, kvpool), (trials.cold, None)):
        with engine(PROFILE, folder / "model", content, separate=False) as paced:
            first_token(paced, 0)
            values += [first_token(paced, 100 + number) for number in range(rounds)]
    return trials


if __name__ == "__main__":
    sys.exit(main())
