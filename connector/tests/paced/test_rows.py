"""The rows of the memory tier between a tier below, the copies and other requests: each fence is broken once, on purpose.

A row has a checksum and a name, which are checked before it is copied to the GPU. So each break is
seen twice: with the check, requests read nothing wrong and the damage is counted; without it, the
emulated GPU finds wrong KV.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from connector.tests.paced.conftest import SMALL
from kvpool_connector.format import Verdict
from kvpool_connector.scheduler.pool import Pool
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers import slab_calls
from kvpool_connector.tiers.slab import Slab
from kvpool_connector.tiers.slots import SlotIndex, State
from kvpool_connector.vllm.manager import KVPoolManager
from kvpool_connector.vllm.worker import KVPoolWorker
from kvpool_connector.worker.mover import Mover
from kvpool_connector.worker.rows import Rows
from testkit.paced.engine import PacedEngine, engine, tokens
from testkit.patience import PATIENCE_S
from testkit.servers import wait_until

SPARE = 4
"""Rows of the memory tier that others need not store into: all but these hold something new then."""
DOCUMENTS = [tokens(number, 3000) for number in range(300, 304)]


@pytest.fixture(scope="module")
def shared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PacedEngine]:
    """An engine with a memory tier of two to three documents above a disk tier of many."""
    disk = {"path": str(tmp_path_factory.mktemp("disk")), "size": "128Mi"}
    kvpool = {"tiers": {"cpu": {"size": "16Mi"}, "disk": disk}, "admission": "always"}
    with engine(SMALL, models / "small", kvpool, separate=False, check=False) as running:
        yield running


@pytest.fixture(params=[True, False], ids=["checked", "unchecked"])
def checked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether rows are checked before they are copied; without it each counts as intact."""
    if not request.param:
        monkeypatch.setattr(Rows, "verdict", lambda *_: Verdict.INTACT)
    return bool(request.param)


def mover() -> Mover:
    """Return the rank's mover."""
    worker = KVPoolWorker.live
    assert worker is not None
    assert isinstance(worker.mover, Mover)
    return worker.mover


def damaged() -> int:
    """Return how many parts were found damaged so far."""
    outcomes: Counter[str] = mover().outbox.outcomes
    return sum(outcomes[f"load {verdict.value}"] for verdict in Verdict if verdict is not Verdict.INTACT)


def pool_of(paced: PacedEngine) -> Pool:
    """Return the scheduler's pool."""
    manager = paced.llm.engine_core.engine_core.scheduler.connector.connector_scheduler.manager
    assert isinstance(manager, KVPoolManager)
    return manager.pool


def drop(paced: PacedEngine, share: float) -> None:
    """Take the tail of the memory tier's keys, in the order in which they came, out of it."""
    index = pool_of(paced).index
    slots = [slot for _, slot in index]
    for slot in slots[len(slots) - int(share * len(slots)) :]:
        index.drop(slot)


def on_disk(paced: PacedEngine, documents: Sequence[list[int]], share: float = 1.0) -> None:
    """Compute documents, and leave them on disk alone, or the given share of their parts."""
    paced.forget(tiers=True)
    paced.generate(documents)
    paced.settle()
    drop(paced, share)
    paced.forget()
    paced.reports(forget=True)


class Disk:
    """The disk tier's reads, which can be held."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        read = Slab.read_into
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()
        self.ended = threading.Event()

        def held(slab: Slab, slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
            self.begun.set()
            assert self.free.wait(PATIENCE_S)
            # A system call that hung knows no deadline: it fills the rows when it can.
            outcomes = read(slab, slots, rows, max(deadline, time.monotonic() + PATIENCE_S))
            self.ended.set()
            return outcomes

        patch.setattr(Slab, "read_into", held)

    def hold(self) -> None:
        """Let reads wait from now on."""
        self.begun.clear()
        self.ended.clear()
        self.free.clear()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The engine's disk, which answers again at the end."""
    disk = Disk(monkeypatch)
    yield disk
    disk.free.set()


def assert_noticed(paced: PacedEngine, checked: bool, damaged_before: int) -> None:
    """The check found damaged rows, or without it the GPU found wrong KV."""
    wrong = sum(report.wrong for report in paced.reports(forget=True))
    if checked:
        assert wrong == 0
        assert damaged() > damaged_before
    else:
        assert wrong > 0


def assert_right(paced: PacedEngine, damaged_before: int) -> None:
    """The control: nothing wrong, and nothing to find."""
    assert sum(report.wrong for report in paced.reports(forget=True)) == 0
    assert damaged() == damaged_before


# ---- a copy begins before the fetch has ended


def test_copy_before_the_fetch_ended(paced: PacedEngine, checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows still hold what was in them before."""
    read = Mover._read
    threads = []

    def early(self: Mover, tier: Any, places: Sequence[Any], deadline: float) -> list[Outcome]:
        thread = threading.Timer(0.5, read, (self, tier, places, deadline))
        threads.append(thread)
        thread.start()
        return [Outcome.HIT] * len(places)

    on_disk(paced, DOCUMENTS[:2])
    before = damaged()
    with monkeypatch.context() as patch:
        patch.setattr(Mover, "_read", early)
        paced.generate(DOCUMENTS[1::-1])
        for thread in threads:
            thread.join()
    assert threads
    assert_noticed(paced, checked, before)


# ---- a read that was given up fills its rows later


def late_read(paced: PacedEngine, disk: Disk) -> None:
    """Give up the fetch of a document, store two others, let the read end, and load these."""
    on_disk(paced, DOCUMENTS[:1])
    disk.hold()
    paced.generate(DOCUMENTS[:1], max_tokens=1)
    assert disk.begun.is_set()
    paced.generate(DOCUMENTS[1:3])
    paced.settle()
    disk.free.set()
    assert disk.ended.wait(PATIENCE_S)
    paced.forget()
    answers = paced.generate(DOCUMENTS[1:3])
    assert sum(answer.cached_tokens for answer in answers) > 0


def test_rows_of_a_read_that_was_given_up(paced: PacedEngine, disk: Disk) -> None:
    """Their slots get other rows."""
    before = damaged()
    late_read(paced, disk)
    assert_right(paced, before)


def test_rows_that_a_late_read_fills(
    paced: PacedEngine, disk: Disk, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without other rows, it writes over what was stored in them meanwhile."""

    def keep(self: Rows, slots: Sequence[int]) -> Callable[[], object]:
        return lambda: None

    monkeypatch.setattr(Rows, "replace", keep)
    before = damaged()
    late_read(paced, disk)
    assert_noticed(paced, checked, before)


# ---- rows of a load that waits for its fetch


def evicted_meanwhile(paced: PacedEngine, disk: Disk, patch: pytest.MonkeyPatch) -> None:
    """Load a document from memory and disk while others fill the memory tier.

    The disk is slow here and does not hang: its reads may take what a fetch may.
    """
    patch.setattr(slab_calls, "READ_S", 5.0)
    on_disk(paced, DOCUMENTS[:1], share=0.5)
    stored = mover().outbox.outcomes["store ok"]
    most = stored + pool_of(paced).index.slots
    disk.hold()

    def free_when_full() -> None:
        with contextlib.suppress(TimeoutError):  # a fetch has its deadline, and the test says what is missing
            wait_until("the tier is full", lambda: mover().outbox.outcomes["store ok"] > most - SPARE, 4.0)
        disk.free.set()

    freeing = threading.Thread(target=free_when_full)
    freeing.start()
    answers = paced.generate(DOCUMENTS, concurrency=4)
    freeing.join()
    assert disk.ended.is_set()
    assert answers[0].cached_tokens > 0, "the fetch was given up"


def test_rows_of_a_load_are_pinned(paced: PacedEngine, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others store takes other rows."""
    before = damaged()
    evicted_meanwhile(paced, disk, monkeypatch)
    assert_right(paced, before)


def test_rows_of_a_load_without_pins(
    paced: PacedEngine, disk: Disk, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are stored in the rows that the load is about to copy."""
    pin, release = SlotIndex.pin, SlotIndex.release

    def late_pin(self: SlotIndex, slots: Any, now: State | None = None) -> None:
        pin(self, slots)
        release(self, slots, now)

    monkeypatch.setattr(SlotIndex, "pin", lambda *_: None)
    monkeypatch.setattr(SlotIndex, "release", late_pin)
    before = damaged()
    evicted_meanwhile(paced, disk, monkeypatch)
    assert_noticed(paced, checked, before)
