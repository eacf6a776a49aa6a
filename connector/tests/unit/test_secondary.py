"""The tiers below a rank's memory by themselves. In the mover: test_mover_lower.py."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from connector.tests.unit.fakes import FakeStore
from connector.tests.unit.rank import IDENTITY
from kvpool_connector.format import HEADER_BYTES
from kvpool_connector.stores import Loan, Outcome
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import PAGE, Slab
from kvpool_connector.transfer import Spill, Tier
from kvpool_connector.worker.outbox import Outbox
from kvpool_connector.worker.rows import Parts, Rows
from kvpool_connector.worker.secondary.base import Place
from kvpool_connector.worker.secondary.disk import Disk, DiskTier
from kvpool_connector.worker.secondary.remote import Remote, RemoteTier
from testkit.patience import PATIENCE_S
from testkit.servers import wait_until


def soon() -> float:
    """A deadline that does not matter."""
    return time.monotonic() + 5


KEYS = [b"%d" % n for n in range(3)]
NAMES = [b"part %d" % n for n in range(3)]


def spill(ticket: int, *numbers: int) -> Spill:
    """A write of some of the keys from the rows of the same numbers."""
    return Spill(ticket, Tier.REMOTE, tuple(KEYS[n] for n in numbers), numbers)


def disk_spill(ticket: int, count: int) -> Spill:
    """A write of so many rows into the slots of the same numbers."""
    return Spill(ticket, Tier.DISK, tuple(KEYS[:1]) * count, tuple(range(count)), tuple(range(count)))


class Rig:
    """Both tiers, and what they say."""

    def __init__(self, folder: Path) -> None:
        self.outbox = Outbox()
        self.data: dict[bytes, bytes] = {}
        self.reader, self.writer = FakeStore(self.data), FakeStore(self.data)
        self.slab = Slab(folder, 0, 20, PAGE, IDENTITY)
        self.arena = Arena(22, PAGE)
        rows = Rows(self.arena, Parts(IDENTITY, lambda key: b"part " + key, lambda key: 8))
        self.remote = RemoteTier(Remote(self.reader, self.writer, 5.0, 5.0), rows, self.outbox)
        self.disk = DiskTier(Disk(self.slab, 4), rows, self.outbox)
        assert self.reader.greeted.wait(PATIENCE_S)
        assert self.writer.greeted.wait(PATIENCE_S)

    @property
    def counts(self) -> Counter[str]:
        """What happened so far."""
        self.outbox.poll()
        return self.outbox.outcomes

    def take(self) -> list[tuple[int, set[int]]]:
        """Writes that ended since the last call."""
        self.outbox.poll()
        return [(ticket, missing) for ticket, (missing,) in self.outbox.take_reports().spilled.items()]

    def wait(self) -> list[tuple[int, set[int]]]:
        """The next ended writes."""
        ended: list[tuple[int, set[int]]] = []

        def taken() -> bool:
            ended.extend(self.take())
            return bool(ended)

        wait_until("a write ends", taken)
        return ended


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Closed at the end; closing once more does no harm."""
    it = Rig(tmp_path)
    yield it
    assert it.remote.close(soon())
    assert it.disk.close(soon())
    it.arena.close()


def test_both_connections_are_made_before_they_are_needed(rig: Rig) -> None:
    """Each on the lane that owns it."""
    assert (len(rig.reader.called("ping")), len(rig.writer.called("ping"))) == (1, 1)
    assert (rig.reader.threads, rig.writer.threads) == ({"kvpool-read"}, {"kvpool-write"})


def test_a_write_puts_what_is_absent(rig: Rig) -> None:
    """And counts it."""
    rig.data[NAMES[1]] = b"there"
    rig.remote.write(spill(7, 0, 1, 2))
    assert rig.wait() == [(7, set())]
    assert rig.writer.called("put") == [[NAMES[0], NAMES[2]]]
    assert rig.counts == {"put hit": 2}
    assert rig.writer.touched == NAMES  # what another engine put is used by this one, too


def test_what_the_store_refuses_is_counted(rig: Rig) -> None:
    """By both connections, under the server's word for it."""
    for store, word in ((rig.reader, "store refused LOADING"), (rig.writer, "store refused OOM")):
        store.before = lambda verb, store=store, word=word: store.errors.update([word])  # type: ignore[misc]
    rig.remote.write(spill(7, 0))
    assert rig.wait() == [(7, set())]
    done = threading.Event()

    def read() -> None:
        rig.remote.read([Place(KEYS[0], 0)], soon())
        done.set()

    rig.remote.read_lane.run(read)
    assert done.wait(PATIENCE_S)
    assert rig.counts == {"put hit": 1, "get hit": 1, "store refused LOADING": 1, "store refused OOM": 2}


def test_an_unanswered_question_is_not_followed_by_a_put(rig: Rig) -> None:
    """The store is slow already."""
    rig.writer.outcome = Outcome.TIMEOUT
    rig.remote.write(spill(7, 0, 1, 2))
    assert rig.wait() == [(7, {0, 1, 2})]
    assert rig.writer.called("put") in ([], [[]])


def test_a_write_whose_call_was_given_up_is_reported_when_that_has_returned(rig: Rig) -> None:
    """Until then it reads the rows. Writes after it are reported at once: nothing is lent to them."""
    free: list[Callable[[], object]] = []
    rig.writer.before = lambda verb: setattr(
        rig.writer, "lent", Loan(range(3), free.append) if (verb, rig.data) == ("put", {}) else None
    )
    rig.remote.write(spill(7, 0, 1, 2))
    wait_until("it was put", lambda: bool(free))
    rig.remote.write(spill(8, 0))
    assert rig.wait() == [(8, set())]
    free.pop()()
    assert rig.wait() == [(7, set())]


def test_a_removal_goes_before_queued_writes(rig: Rig) -> None:
    """The next write must not find the damaged part there."""
    started, go = threading.Event(), threading.Event()

    def wait(verb: str) -> None:
        started.set()
        go.wait(10)

    rig.writer.before = wait
    rig.remote.write(spill(1, 0))
    assert started.wait(PATIENCE_S)
    rig.remote.write(spill(2, 1, 2))
    rig.remote.remove(KEYS[2])
    go.set()
    ended = rig.wait()
    while len(ended) < 2:
        ended += rig.wait()
    verbs = [verb for verb, _ in rig.writer.calls if verb in ("exists", "delete")]
    assert verbs == ["exists", "delete", "exists"]
    assert rig.counts["delete miss"] == 1


def test_reads_are_counted_by_outcome(rig: Rig) -> None:
    """For the metrics."""
    rig.data[NAMES[0]] = b"x" * (HEADER_BYTES + 8)
    places = [Place(key, slot) for slot, key in enumerate(KEYS)]
    assert rig.remote.read(places, soon()) == [Outcome.HIT, Outcome.MISS, Outcome.MISS]
    assert rig.counts == {"get hit": 1, "get miss": 2}


def test_a_slab_that_raises_in_every_turn_is_reported_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything it did not write."""

    def write(slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
        raise OSError("EIO")

    monkeypatch.setattr(rig.slab, "write_from", write)
    rig.disk.write(disk_spill(7, 20))
    assert rig.wait() == [(7, set(range(20)))]
    assert rig.take() == []


@pytest.mark.parametrize("tier", ["remote", "disk"])
def test_what_is_dropped_is_reported_once_and_not_written(rig: Rig, tier: str) -> None:
    """At an end that must not take long: what has begun is finished, the rest is a cached block less."""
    started, go = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        started.set()
        go.wait(10)

    if tier == "remote":
        rig.writer.before = wait
        for ticket in (1, 2):
            rig.remote.write(spill(ticket, ticket))
        assert started.wait(PATIENCE_S)
        rig.remote.drop()
    else:
        rig.disk.read_lane.run(wait)
        assert started.wait(PATIENCE_S)
        for ticket in (1, 2):
            rig.disk.write(disk_spill(ticket, 12))
        rig.disk.drop()
    go.set()
    ended = rig.wait()
    while len(ended) < 2:
        ended += rig.wait()
    if tier == "remote":
        assert ended == [(1, set()), (2, {0})]
        assert list(rig.data) == [NAMES[1]]
    else:
        assert ended == [(1, set(range(12))), (2, set(range(12)))]
        assert rig.counts["disk write hit"] == 0


def test_close_is_bounded_and_leaves_a_busy_connection_alone(rig: Rig) -> None:
    """It says when a lane did not end; that lane's thread still uses what it owns."""
    started, go = threading.Event(), threading.Event()

    def hang(verb: str) -> None:
        started.set()
        go.wait(10)

    rig.reader.before = hang
    rig.remote.read_lane.run(lambda: rig.remote._greet(rig.reader))
    assert started.wait(PATIENCE_S)
    assert not rig.remote.close(time.monotonic() + 0.05)
    assert (rig.reader.closed, rig.writer.closed) == (False, True)
    go.set()
