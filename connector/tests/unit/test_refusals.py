"""What follows from a server's error replies: the table, and what of them goes into the log."""

from __future__ import annotations

import pytest

from kvpool_connector.stores import ELSEWHERE, Backoff, Breaker
from kvpool_connector.stores.refusals import QUIET_S, Spells, event_of, refusal_of, words_of


@pytest.mark.parametrize(
    ("line", "event", "reads", "elsewhere"),
    [
        (b"-READONLY You can't write against a read only replica.", "store refused READONLY", True, True),
        (b"-LOADING Redis is loading the dataset in memory", "store refused LOADING", False, True),
        (b"-MASTERDOWN Link with MASTER is down", "store refused MASTERDOWN", False, True),
        (b"-NOAUTH Authentication required.", "store refused NOAUTH", False, True),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", "store refused OOM", True, False),
        (b"-MISCONF Redis is configured to save RDB snapshots", "store refused MISCONF", True, False),
        (b"-NOREPLICAS Not enough good replicas to write.", "store refused NOREPLICAS", True, False),
        (b"-NOPERM User kv has no permissions to run the 'set' command", "store refused NOPERM", False, False),
        (b"-MOVED 3999 10.0.0.1:6381", "store refused MOVED", False, False),
        (b"-CLUSTERDOWN Hash slot not served", "store refused CLUSTERDOWN", False, False),
        (b"-ERR value is not an integer", "store refused other", False, False),
        (b"-WRONGTYPE Operation against a key", "store refused other", False, False),
        (b"-\xff\xfe", "store refused other", False, False),
        (b"-", "store refused other", False, False),
    ],
)
def test_words(line: bytes, event: str, reads: bool, elsewhere: bool) -> None:
    """Each has a name in metrics; what is not in the table shares one, or a server could make any number of them."""
    refusal = refusal_of(line)
    assert (refusal.event, refusal.reads, refusal.elsewhere) == (event, reads, elsewhere)
    assert (refusal.event in ELSEWHERE) is elsewhere
    assert event_of(refusal.word) == event


def test_a_reply_that_repeats_the_value_is_cut() -> None:
    """Values are people's prompts, in a way. The rest is printable and short."""
    line = b"-ERR unknown command 'SET', with args beginning with: 'kvpool:1' 'secret'"
    assert words_of(line) == "ERR unknown command 'SET'"
    assert words_of(b"-ERR \xff\n" + b"x" * 1000) == r"ERR \xff\n" + "x" * 194


def test_a_spell_is_told_once() -> None:
    """It ends when nothing was seen for long. Each server has its own."""
    spells = Spells()
    assert [spells.begins("a:1", "OOM", now) for now in (0.0, 1.0, QUIET_S)] == [True, False, False]
    assert spells.begins("a:1", "MOVED", 2.0)
    assert spells.begins("b:1", "OOM", 2.0)
    assert not spells.begins("a:1", "OOM", 2 * QUIET_S)
    assert spells.begins("a:1", "OOM", 3 * QUIET_S + 1)


def test_a_backoff_grows_and_begins_anew() -> None:
    backoff = Backoff(first_s=1, longest_s=4, quiet_s=100)
    due = [now for now in range(40) if backoff.due(now)]
    assert due == [0, 1, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39]
    assert backoff.due(200)
    assert not backoff.due(200.5)
    assert backoff.due(201)


def test_a_breaker_tells_all_connections_to_move() -> None:
    """At growing intervals."""
    now = [0.0]
    breaker = Breaker(clock=lambda: now[0])
    moves = []
    for now[0] in (0.0, 0.5, 1.0, 2.0, 3.0):
        breaker.elsewhere()
        moves.append(breaker.moves)
    assert moves == [1, 1, 2, 2, 3]
