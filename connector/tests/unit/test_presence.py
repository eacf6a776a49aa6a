"""Questions to the remote store, asked from a thread that must never wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connector.tests.unit.fakes import FakeStore
from kvpool_connector.scheduler import presence as module
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.stores import Outcome
from testkit.servers import wait_until

Make = Callable[..., Presence]


class Clock:
    """Moves when told. The presence thread does not use it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Of the scheduler's side."""
    return Clock()


@pytest.fixture
def make(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Presences with a quick heartbeat, closed at the end."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.04)
    made: list[Presence] = []

    def build(store: FakeStore, *, reached: bool = True, **options: Any) -> Presence:
        arguments: dict[str, Any] = {
            "names": lambda key: [key],
            "timeout_s": lambda questions: 1.0,
            "patience_s": 2.0,
            "clock": clock,
        } | options
        presence = Presence(store, **arguments)
        made.append(presence)
        if reached:
            wait_until("the first heartbeat", lambda: presence.reachable)
        return presence

    yield build
    for presence in made:
        presence.close()
    assert not any(thread.name == "kvpool-presence" for thread in threading.enumerate())


def verdict(presence: Presence, key: bytes) -> bool:
    """Ask until there is an answer. The clock stands still, so nothing lapses."""
    answers: list[bool] = []

    def answered() -> bool:
        answer = presence.ask(key)
        presence.flush()
        if answer is not None:
            answers.append(answer)
        return bool(answers)

    wait_until("an answer", answered)
    return answers[0]


def test_asked_once_and_answered_later(make: Make) -> None:
    """None at first; then what the store says."""
    store = FakeStore({b"here": b"1"})
    presence = make(store)
    assert presence.ask(b"here") is None
    assert store.called("exists") == []  # nothing goes out before the end of the step
    assert verdict(presence, b"here") is True
    assert verdict(presence, b"absent") is False
    assert presence.late == 0


def test_the_questions_of_a_step_are_one_batch(make: Make) -> None:
    """Each key once, however often it was asked."""
    store = FakeStore({})
    presence = make(store)
    for key in (b"a", b"b", b"a", b"c"):
        assert presence.ask(key) is None
    presence.flush()
    presence.flush()
    wait_until("the batch", lambda: store.called("exists"))
    assert verdict(presence, b"c") is False
    assert store.called("exists") == [[b"a", b"b", b"c"]]
    assert store.threads == {"kvpool-presence"}


@pytest.mark.parametrize(("parts", "expected"), [((0, 1, 2), True), ((0, 2), False), ((), False)])
def test_a_key_is_there_if_all_ranks_parts_are(make: Make, parts: tuple[int, ...], expected: bool) -> None:
    """And the keys around it are not mixed up."""
    store = FakeStore({b"key/%d" % rank: b"1" for rank in parts} | {b"all/%d" % rank: b"1" for rank in range(3)})
    presence = make(store, names=lambda key: [b"%s/%d" % (key, rank) for rank in range(3)])
    for key in (b"none", b"key", b"all"):
        assert presence.ask(key) is None
    presence.flush()
    assert [verdict(presence, key) for key in (b"none", b"key", b"all")] == [False, expected, True]


def test_a_late_answer_is_a_miss_and_is_believed_afterwards(make: Make, clock: Clock) -> None:
    """The request that asked does not wait; the next one profits."""
    store, go = FakeStore({b"here": b"1"}), threading.Event()
    presence = make(store)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    assert presence.ask(b"here") is None
    presence.flush()
    clock.now += 0.99
    assert presence.ask(b"here") is None
    clock.now += 0.02
    assert presence.ask(b"here") is False
    assert presence.late == 1
    assert presence.reachable  # late is not lost
    go.set()
    wait_until("it is believed", lambda: presence.ask(b"here") is True)


def test_the_deadline_begins_when_the_batch_is_sent(make: Make, clock: Clock) -> None:
    """A long step before that is no fault of the store's, and a larger batch has more time."""
    store, go = FakeStore({b"here": b"1"}), threading.Event()
    presence = make(store, timeout_s=lambda questions: 0.1 * questions)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    keys = [b"here", b"a", b"b", b"c"]
    assert [presence.ask(key) for key in keys] == [None] * 4
    clock.now += 100
    assert presence.ask(b"here") is None
    presence.flush()
    clock.now += 0.39
    assert [presence.ask(key) for key in keys] == [None] * 4
    clock.now += 0.02
    assert [presence.ask(key) for key in keys] == [False] * 4
    assert presence.late == 4
    go.set()


def test_taking_answers_says_whether_there_were_any(make: Make) -> None:
    """Requests that wait are scanned again only then."""
    presence = make(FakeStore({b"here": b"1"}))
    assert not presence.take_answers()
    assert presence.ask(b"here") is None
    assert not presence.take_answers()
    presence.flush()
    wait_until("the answer", presence.take_answers)
    assert not presence.take_answers()
    assert presence.ask(b"here") is True


def test_an_answer_that_a_question_took_along_is_still_news(make: Make) -> None:
    """The request that waits for it is another one than the request that asks now."""
    presence = make(FakeStore({b"here": b"1"}))
    assert verdict(presence, b"here") is True
    assert presence.take_answers()


def test_a_deadline_that_passes_is_news(make: Make, clock: Clock) -> None:
    """Or requests would wait for a hanging store until it is taken for lost."""
    store, go = FakeStore({}), threading.Event()
    presence = make(store)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    for key in (b"a", b"b"):
        assert presence.ask(key) is None
        presence.flush()
        clock.now += 0.5
    assert presence.take_answers()  # a's deadline
    assert not presence.take_answers()
    clock.now += 0.5
    assert presence.take_answers()
    assert presence.ask(b"b") is False
    go.set()


def test_an_answer_beats_its_deadline(make: Make, clock: Clock) -> None:
    """What the thread knows by the time it is asked for is no late answer."""
    presence = make(FakeStore({b"here": b"1"}))
    assert presence.ask(b"here") is None
    presence.flush()
    wait_until("the answer", lambda: not presence._answers.empty())
    clock.now += 10
    assert presence.ask(b"here") is True
    assert presence.late == 0


def test_what_was_believed_meanwhile_is_not_made_late_by_the_flush(make: Make, clock: Clock) -> None:
    """A verdict from elsewhere, between a question and its batch, keeps its own time."""
    store, go = FakeStore({}), threading.Event()
    presence = make(store)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    assert presence.ask(b"here") is None
    presence.believe(b"here", True)
    presence.flush()
    clock.now += 2
    assert presence.ask(b"here") is True
    go.set()


def test_answers_are_believed_for_a_while(make: Make, clock: Clock) -> None:
    """A part that is there longer than one that is not: that one may come any moment."""
    store = FakeStore({b"here": b"1"})
    presence = make(store)
    assert verdict(presence, b"here") is True
    assert verdict(presence, b"absent") is False
    clock.now += 0.99
    assert presence.ask(b"absent") is False
    clock.now += 0.02
    assert presence.ask(b"absent") is None
    clock.now += 3.98
    assert presence.ask(b"here") is True
    clock.now += 0.02
    assert presence.ask(b"here") is None


def test_what_others_know_is_believed_and_forgotten(make: Make) -> None:
    """A failed read, for one."""
    presence = make(FakeStore({b"here": b"1"}))
    presence.believe(b"here", False)
    assert presence.ask(b"here") is False
    presence.forget()
    assert verdict(presence, b"here") is True


def test_verdicts_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still wanted is asked again."""
    monkeypatch.setattr(module, "_MOST_VERDICTS", 100)
    presence = make(FakeStore({}))
    for number in range(1000):
        presence.believe(b"%d" % number, True)
        assert len(presence._verdicts) <= 100


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT])
def test_an_unreachable_store_is_a_miss_at_once(make: Make, outcome: Outcome) -> None:
    """No question is sent and no request waits; the heartbeat finds out when that changes."""
    store = FakeStore({b"here": b"1"})
    store.outcome = outcome
    presence = make(store, reached=False)
    wait_until("a heartbeat", lambda: store.called("ping"))
    assert presence.ask(b"here") is False
    presence.flush()
    assert store.called("exists") == []
    store.outcome = None
    wait_until("its return is seen", lambda: presence.reachable)
    assert verdict(presence, b"here") is True


def test_a_store_that_is_lost_in_mid_question(make: Make) -> None:
    """Its keys are absent, and it is unreachable from then on."""
    store = FakeStore({b"here": b"1"})
    presence = make(store)
    store.outcome = Outcome.FAILED
    assert verdict(presence, b"here") is False
    wait_until("the loss is seen", lambda: not presence.reachable)
    assert presence.ask(b"other") is False


def test_a_store_that_falls_silent_in_mid_question(make: Make) -> None:
    """A miss at once, not when the question's time is up, also for what it had said before that;
    then for all that it was believed to have."""
    store = FakeStore({b"here": b"1", b"before": b"1"})
    presence = make(store)
    assert verdict(presence, b"before") is True
    assert presence.take_answers()
    outcomes = [Outcome.HIT, Outcome.STALLED]
    store.exists = lambda keys, deadline: outcomes  # type: ignore[method-assign]
    store.outcome = Outcome.STALLED
    assert [presence.ask(key) for key in (b"here", b"other")] == [None, None]
    presence.flush()
    wait_until("it is told", presence.take_answers)
    assert [presence.ask(key) for key in (b"here", b"other", b"before")] == [False] * 3
    assert (presence.late, presence.reachable) == (0, False)


def test_a_doubt_is_settled_by_the_store(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank waited in vain. Nothing is believed until this thread was answered, which asks at
    once."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 60)
    store, go = FakeStore({b"here": b"1"}), threading.Event()
    presence = make(store)
    assert verdict(presence, b"here") is True
    store.before = lambda verb: go.wait(5)
    presence.doubt()
    presence.doubt()
    assert presence.ask(b"here") is False
    go.set()
    wait_until("it answered", lambda: presence.reachable)
    assert presence.ask(b"here") is True
    assert len(store.called("ping")) == 2
    assert store.called("exists") == [[b"here"]]


def test_the_generation_is_the_stores(make: Make) -> None:
    """Seen by the heartbeat of an idle engine."""
    store = FakeStore({})
    presence = make(store)
    assert presence.generation == 1
    store.generation = 2
    wait_until("a new connection is seen", lambda: presence.generation == 2)


def test_the_greeting_is_written_once_per_connection(make: Make) -> None:
    """And not over what another engine wrote."""
    data: dict[bytes, bytes] = {}
    store = FakeStore(data)
    make(store, greeting=(b"name", memoryview(b"document")))
    wait_until("more heartbeats", lambda: len(store.called("ping")) >= 3)
    assert (data, store.called("put")) == ({b"name": b"document"}, [[b"name"]])
    data.clear()
    store.generation = 2
    wait_until("it is written again", lambda: data == {b"name": b"document"})

    data[b"name"] = b"of another"
    other = FakeStore(data)
    make(other, greeting=(b"name", memoryview(b"document")))
    wait_until("more heartbeats", lambda: len(other.called("ping")) >= 3)
    assert (data, other.called("put")) == ({b"name": b"of another"}, [])


@pytest.mark.parametrize("verb", ["ping", "exists"])
def test_a_store_that_raises_does_not_end_the_thread(
    make: Make, clock: Clock, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours: logged, and the question is a miss by its deadline."""

    def fail(what: str) -> None:
        if what == verb:
            raise RuntimeError("boom")

    store = FakeStore({b"here": b"1"})
    with caplog.at_level(logging.ERROR):
        presence = make(store)
        store.before = fail
        assert presence.ask(b"here") is None
        presence.flush()
        wait_until("it raised", lambda: "boom" in caplog.text)
    clock.now += 1.01
    assert presence.ask(b"here") is (verb == "ping")
    store.before = lambda verb: None
    presence.forget()
    assert verdict(presence, b"here") is True


def test_a_store_that_raises_at_first(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The thread lives to see it recover."""
    store, broken = FakeStore({b"here": b"1"}), threading.Event()
    broken.set()

    def fail(what: str) -> None:
        if broken.is_set():
            raise RuntimeError("boom")

    store.before = fail
    presence = make(store, reached=False)
    wait_until("it raised", lambda: "boom" in caplog.text)
    broken.clear()
    wait_until("it is reached", lambda: presence.reachable)


def test_close_closes_the_connection(make: Make) -> None:
    """On the thread that owns it."""
    store = FakeStore({})
    presence = make(store)
    presence.close()
    assert store.closed
    assert not presence._thread.is_alive()


def test_a_question_before_the_first_contact_waits_for_its_answer(make: Make) -> None:
    """A fresh engine's first request comes before the first heartbeat: that is no reason to compute what the store has."""
    contact = threading.Event()
    store = FakeStore({b"a": b"1"})
    store.before = lambda verb: contact.wait(5)
    presence = make(store, reached=False)
    assert presence.ask(b"a") is None
    presence.flush()
    contact.set()
    assert verdict(presence, b"a") is True
