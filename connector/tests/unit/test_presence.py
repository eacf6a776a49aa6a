"""Questions to the remote store, asked from a thread that must never wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from connector.tests.unit.fakes import FakeStore
from kvpool_connector.scheduler import asker, questions
from kvpool_connector.scheduler import presence as module
from kvpool_connector.scheduler.presence import Presence
from kvpool_connector.stores import Outcome
from testkit.servers import wait_until

Make = Callable[..., Presence]


PROMPT = [b"%04d" % number + bytes(4) for number in range(4096)]
"""Keys of one group, whose number is in the last four bytes of each."""


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
    monkeypatch.setattr(asker, "HEARTBEAT_S", 0.04)
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
        answer = presence.ask(key, "r")
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
    assert presence.ask(b"here", "r") is None
    assert store.called("exists") == []  # nothing goes out before the end of the step
    assert verdict(presence, b"here") is True
    assert verdict(presence, b"absent") is False
    assert presence.late == 0


def test_the_questions_of_a_step_are_one_batch(make: Make) -> None:
    """Each key once, however often it was asked."""
    store = FakeStore({})
    presence = make(store)
    for key in (b"a", b"b", b"a", b"c"):
        assert presence.ask(key, "r") is None
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
        assert presence.ask(key, "r") is None
    presence.flush()
    assert [verdict(presence, key) for key in (b"none", b"key", b"all")] == [False, expected, True]


def test_a_late_answer_is_a_miss_and_is_believed_afterwards(make: Make, clock: Clock) -> None:
    """The request that asked does not wait; the next one profits."""
    store, go = FakeStore({b"here": b"1"}), threading.Event()
    presence = make(store)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    assert presence.ask(b"here", "r") is None
    presence.flush()
    clock.now += 0.99
    assert presence.ask(b"here", "r") is None
    clock.now += 0.02
    assert presence.ask(b"here", "r") is False
    assert presence.late == 1
    assert presence.reachable  # late is not lost
    go.set()
    wait_until("it is believed", lambda: presence.ask(b"here", "r") is True)


def test_the_deadline_begins_when_the_batch_is_sent(make: Make, clock: Clock) -> None:
    """A long step before that is no fault of the store's, and a larger batch has more time."""
    store, go = FakeStore({b"here": b"1"}), threading.Event()
    presence = make(store, timeout_s=lambda questions: 0.1 * questions)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    keys = [b"here", b"a", b"b", b"c"]
    assert [presence.ask(key, "r") for key in keys] == [None] * 4
    clock.now += 100
    assert presence.ask(b"here", "r") is None
    presence.flush()
    clock.now += 0.39
    assert [presence.ask(key, "r") for key in keys] == [None] * 4
    clock.now += 0.02
    assert [presence.ask(key, "r") for key in keys] == [False] * 4
    assert presence.late == 4
    go.set()


def test_taking_answers_says_whether_there_were_any(make: Make) -> None:
    """Requests that wait are scanned again only then."""
    presence = make(FakeStore({b"here": b"1"}))
    assert not presence.take_answers()
    assert presence.ask(b"here", "r") is None
    assert not presence.take_answers()
    presence.flush()
    wait_until("the answer", presence.take_answers)
    assert not presence.take_answers()
    assert presence.ask(b"here", "r") is True


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
        assert presence.ask(key, key.decode()) is None
        presence.flush()
        clock.now += 0.5
    assert presence.take_answers() == {"a"}
    assert not presence.take_answers()
    clock.now += 0.5
    assert presence.take_answers() == {"b"}
    assert presence.ask(b"b", "r") is False
    go.set()


def test_an_answer_beats_its_deadline(make: Make, clock: Clock) -> None:
    """What the thread knows by the time it is asked for is no late answer."""
    presence = make(FakeStore({b"here": b"1"}))
    assert presence.ask(b"here", "r") is None
    presence.flush()
    wait_until("the answer", lambda: not presence._asker.ended.empty())
    clock.now += 10
    assert presence.ask(b"here", "r") is True
    assert presence.late == 0


def test_what_was_believed_meanwhile_is_not_made_late_by_the_flush(make: Make, clock: Clock) -> None:
    """A verdict from elsewhere, between a question and its batch, keeps its own time."""
    store, go = FakeStore({}), threading.Event()
    presence = make(store)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    assert presence.ask(b"here", "r") is None
    presence.believe([b"here"], True)
    presence.flush()
    clock.now += 2
    assert presence.ask(b"here", "r") is True
    go.set()


def test_answers_are_believed_for_a_while(make: Make, clock: Clock) -> None:
    """A part that is there longer than one that is not: that one may come any moment."""
    store = FakeStore({b"here": b"1"})
    presence = make(store)
    assert verdict(presence, b"here") is True
    assert verdict(presence, b"absent") is False
    clock.now += 0.99
    assert presence.ask(b"absent", "r") is False
    clock.now += 0.02
    assert presence.ask(b"absent", "r") is None
    clock.now += 3.98
    assert presence.ask(b"here", "r") is True
    clock.now += 0.02
    assert presence.ask(b"here", "r") is None


ORDERS = {
    "the chain's": range(8),
    "with a gap": (0, 1, 3, 4),
    "backwards": range(7, -1, -1),
    "twice": (0, 1, 0, 1, 2),
    "from the middle": (3, 4, 5),
    "the absent one first": (6, 0, 1, 7, 2),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_verdicts_do_not_depend_on_the_order_of_the_questions(make: Make, order: Iterable[int]) -> None:
    """Asking for a chain's keys in its order is merely quicker than any other order."""
    keys = PROMPT[:8]
    presence = make(FakeStore(dict.fromkeys(keys[:6], b"1")))
    ask_all(presence, keys)
    for _ in range(2):
        assert [presence.ask(keys[number], "s") for number in order] == [number < 6 for number in order]
        presence.flush()


@pytest.mark.parametrize("end", ["a step", "a load that failed", "a reset"])
def test_verdicts_of_a_chain_end_in_the_middle_of_it(make: Make, clock: Clock, end: str) -> None:
    """The first keys were asked for in the chain's order, and what was known of the next one counts no longer."""
    keys = PROMPT[:4]
    presence = make(FakeStore(dict.fromkeys(keys, b"1")))
    ask_all(presence, keys)
    assert [presence.ask(key, "r") for key in keys[:2]] == [True, True]
    if end == "a step":
        presence.flush()
        clock.now += module.PRESENT_S
    elif end == "a load that failed":
        presence.believe([keys[2]], False)
    else:
        presence.forget()
    assert presence.ask(keys[2], "r") is (False if end == "a load that failed" else None)


def test_what_others_know_is_believed_and_forgotten(make: Make) -> None:
    """A failed read, for one."""
    presence = make(FakeStore({b"here": b"1"}))
    presence.believe([b"here"], False)
    assert presence.ask(b"here", "r") is False
    presence.forget()
    assert verdict(presence, b"here") is True


def test_verdicts_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still wanted is asked again."""
    monkeypatch.setattr(questions, "MOST_VERDICTS", 100)
    presence = make(FakeStore({}))
    for number in range(1000):
        presence.believe([b"%d" % number], True)
        assert len(presence._verdicts) <= 101


def test_more_keys_are_wanted_than_verdicts_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being asked is not forgotten: each key is asked about once, and every request gets its answer."""
    monkeypatch.setattr(questions, "MOST_VERDICTS", 100)
    prompts = {f"r{n}": [b"%d/%d" % (n, i) for i in range(200)] for n in range(10)}
    store = FakeStore({key: b"1" for keys in prompts.values() for key in keys})
    presence = make(store)
    for req_id, keys in prompts.items():
        assert [presence.ask(key, req_id) for key in keys] == [None] * 200
    presence.flush()
    answered: set[str] = set()

    def all_answered() -> bool:
        for req_id in presence.take_answers():
            assert [presence.ask(key, req_id) for key in prompts[req_id]] == [True] * 200
            answered.add(req_id)
        presence.flush()
        return answered == set(prompts)

    wait_until("all are answered", all_answered)
    asked = [key for keys in store.called("exists") for key in keys]
    assert sorted(asked) == sorted(key for keys in prompts.values() for key in keys)
    presence.believe([b"another"], True)
    assert len(presence._verdicts) <= 200


def test_too_many_questions(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miss at once, and counted, until some of them were answered."""
    monkeypatch.setattr(module, "MOST_PENDING", 2)
    store, go = FakeStore({b"c": b"1"}), threading.Event()
    presence = make(store)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    assert [presence.ask(key, "r") for key in (b"a", b"b")] == [None, None]
    presence.flush()
    assert presence.ask(b"c", "r") is False
    assert presence.take_counts() == {module.NOT_ASKED: 1}
    go.set()
    wait_until("they are answered", presence.take_answers)
    assert presence.ask(b"c", "r") is None


# ---- how far it is asked ---------------------------------------------------------------------------------------


def ask_all(presence: Presence, keys: list[bytes], req_id: str = "r", **options: Any) -> list[bool | None]:
    """The answers to a scan of these keys, once there are any."""
    assert None in [presence.ask(key, req_id, **options) for key in keys]
    presence.flush()
    wait_until("the answers", presence.take_answers)
    return [presence.ask(key, req_id, **options) for key in keys]


RANKS = 8


def parts(key: bytes) -> list[bytes]:
    """Of all ranks."""
    return [b"%s/%d" % (key, rank) for rank in range(RANKS)]


def test_a_cold_prompt_costs_few_questions(make: Make) -> None:
    """Of 4096 keys with parts of 8 ranks, the head: one round trip."""
    store = FakeStore({})
    presence = make(store, names=parts)
    assert ask_all(presence, PROMPT)[:2] == [False, False]
    assert store.called("exists") == [[name for key in PROMPT[: questions.HEAD] for name in parts(key)]]


def test_a_prompt_that_is_there_is_found_to_its_end(make: Make) -> None:
    """In one step of the scheduler, whatever its length."""
    store = FakeStore({name: b"1" for key in PROMPT[:3000] for name in parts(key)})
    presence = make(store, names=parts)
    answers = ask_all(presence, PROMPT)
    assert answers[:3001] == [True] * 3000 + [False]
    assert len(store.called("exists")) <= 2 * 4096 // 256


def test_a_window_at_the_end_is_found(make: Make) -> None:
    """A head that the store does not have any more, which no request needs of such a group, ends nothing."""
    window = 8
    scan = PROMPT[::-1]  # as vLLM looks a window up
    store = FakeStore(dict.fromkeys(PROMPT[1000:3000], b"1"))
    presence = make(store)
    answers = ask_all(presence, scan, window=window)
    first = answers.index(True)
    assert scan[first : first + window] == PROMPT[2999 : 2999 - window : -1]
    assert answers[first : first + window] == [True] * window
    assert len({key for keys in store.called("exists") for key in keys}) <= 2048


@pytest.mark.parametrize("head", [True, False])
def test_windows_of_a_cold_prompt(make: Make, head: bool) -> None:
    """Are not asked about where nothing at all was found before: such a request has no hit."""
    prefix, windowed = PROMPT[:64], [key[:-4] + b"\0\0\0\1" for key in PROMPT[:64]]
    store = FakeStore({})
    presence = make(store)
    for key in prefix:
        assert presence.ask(key, "r", None, head) is None
    for key in windowed[::-1]:
        assert presence.ask(key, "r", 4, False) is None
    presence.flush()
    wait_until("the answers", presence.take_answers)
    assert presence.ask(prefix[0], "r") is False
    asked = {key for keys in store.called("exists") for key in keys}
    assert asked.isdisjoint(windowed) is head


def test_two_requests_that_begin_alike(make: Make) -> None:
    """The second one waits for the first one's questions and asks its own; what was skipped for the first one is asked again."""
    store = FakeStore(dict.fromkeys(PROMPT[32:40], b"1"))
    presence = make(store)
    assert [presence.ask(key, "r") for key in PROMPT[:40]] == [None] * 40
    assert [presence.ask(key, "other") for key in PROMPT[32:41]] == [None] * 9  # its device has what comes before
    presence.flush()
    woken: set[str] = set()

    def both() -> bool:
        woken.update(presence.take_answers())
        return woken == {"r", "other"}

    wait_until("both are told", both)
    assert presence.ask(PROMPT[0], "r") is False
    answers = ask_all(presence, PROMPT[32:41], "other")
    assert answers == [True] * 8 + [False]


# ---- refusals, other servers, old rows -------------------------------------------------------------------------


def test_a_store_that_answers_ping_and_no_question(make: Make) -> None:
    """A user without rights: unreachable, for as long as that lasts."""
    store = FakeStore({})
    answer = store.exists
    store.exists = lambda keys, deadline: [Outcome.FAILED] * len(keys)  # type: ignore[method-assign]
    presence = make(store, reached=False, greeting=(b"name", memoryview(b"document")))
    wait_until("some heartbeats", lambda: len(store.called("ping")) >= 3)
    assert not presence.reachable
    store.exists = answer  # type: ignore[method-assign]
    wait_until("it is reached", lambda: presence.reachable)


def test_refusals_are_handed_on(make: Make) -> None:
    """From the thread that owns the connection."""
    store = FakeStore({})
    presence = make(store)
    store.before = lambda verb: store.errors.update(["store refused OOM"])
    assert verdict(presence, b"key") is False
    wait_until("they are counted", lambda: presence.take_counts()["store refused OOM"] >= 1)


def test_redialling_is_done_now_and_then(make: Make, clock: Clock) -> None:
    """At once, then at growing intervals while there is a reason."""
    store = FakeStore({})
    presence = make(store)
    for count, pause in ((1, 0.0), (1, 0.5), (2, 0.6), (2, 1.0), (3, 1.1)):
        clock.now += pause
        presence.redial()
        store.closed = False
        before = len(store.called("ping"))
        wait_until("a heartbeat", lambda before=before: len(store.called("ping")) > before)
        assert presence._elsewhere._delay_s == 2.0**count


def test_old_rows_are_refreshed_in_the_background(make: Make) -> None:
    """One call at a time, and the answers name what the store lost."""
    store, go = FakeStore({b"here": b"1"}), threading.Event()
    presence = make(store)
    store.before = lambda verb: go.wait(5) if verb == "exists" else None
    assert presence.refresh([b"here", b"lost"])
    assert not presence.refresh([b"other"])
    assert presence.take_refreshed() == []
    go.set()
    answers: list[tuple[bytes, bool]] = []

    def answered() -> bool:
        answers.extend(presence.take_refreshed())
        return bool(answers)

    wait_until("the answers", answered)
    assert answers == [(b"here", True), (b"lost", False)]
    assert store.touched == [b"here", b"lost"]
    store.outcome = Outcome.FAILED
    assert presence.refresh([b"here"])
    wait_until("another may begin", lambda: presence.take_refreshed() == [] and presence.refresh([b"here"]))


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT])
def test_an_unreachable_store_is_a_miss_at_once(make: Make, outcome: Outcome) -> None:
    """No question is sent and no request waits; the heartbeat finds out when that changes."""
    store = FakeStore({b"here": b"1"})
    store.outcome = outcome
    presence = make(store, reached=False)
    wait_until("a heartbeat", lambda: store.called("ping"))
    assert presence.ask(b"here", "r") is False
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
    assert presence.ask(b"other", "r") is False


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
    assert [presence.ask(key, "r") for key in (b"here", b"other")] == [None, None]
    presence.flush()
    wait_until("it is told", presence.take_answers)
    assert [presence.ask(key, "r") for key in (b"here", b"other", b"before")] == [False] * 3
    assert (presence.late, presence.reachable) == (0, False)


def test_a_doubt_is_settled_by_the_store(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank waited in vain. Nothing is believed until this thread was answered, which asks at
    once."""
    monkeypatch.setattr(asker, "HEARTBEAT_S", 60)
    store, go = FakeStore({b"here": b"1"}), threading.Event()
    presence = make(store)
    assert verdict(presence, b"here") is True
    store.before = lambda verb: go.wait(5)
    presence.doubt()
    presence.doubt()
    assert presence.ask(b"here", "r") is False
    go.set()
    wait_until("it answered", lambda: presence.reachable)
    assert presence.ask(b"here", "r") is True
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
        assert presence.ask(b"here", "r") is None
        presence.flush()
        wait_until("it raised", lambda: "boom" in caplog.text)
    clock.now += 1.01
    assert presence.ask(b"here", "r") is (verb == "ping")
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
    assert not presence._asker._thread.is_alive()


def test_a_question_before_the_first_contact_waits_for_its_answer(make: Make) -> None:
    """A fresh engine's first request comes before the first heartbeat: that is no reason to compute what the store has."""
    contact = threading.Event()
    store = FakeStore({b"a": b"1"})
    store.before = lambda verb: contact.wait(5)
    presence = make(store, reached=False)
    assert presence.ask(b"a", "r") is None
    presence.flush()
    contact.set()
    assert verdict(presence, b"a") is True
