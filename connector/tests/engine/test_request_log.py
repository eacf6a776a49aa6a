"""The two lines of a request: tokens, tiers and milliseconds, each told once. No engine runs here."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from kvpool_connector.transfer import Kind, Transfer
from kvpool_connector.vllm.request_log import RequestLog

CHUNK_TOKENS = 64


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """vLLM's logger hands nothing on to the root's handlers."""
    logger = logging.getLogger("vllm.kvpool_connector.vllm.request_log")
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield texts
    logger.removeHandler(handler)
    logger.setLevel(level)


class Clock:
    """Moves when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def load(chunks: int, disk: int = 0, remote: int = 0) -> Transfer:
    """Of so many chunks, the first from the disk, the next from the store."""
    keys = tuple(bytes([number]) for number in range(chunks))
    from_disk = tuple((position, position) for position in range(disk))
    return Transfer(Kind.LOAD, 1, "r", keys, tuple(range(chunks)), from_disk, tuple(range(disk, disk + remote)))


def test_a_hit_is_told_by_tier_when_it_arrived(said: list[str]) -> None:
    """Not before; and the request's next scheduling, behind the load, is not told again."""
    clock = Clock()
    log = RequestLog(CHUNK_TOKENS, 1, clock)
    log.load_begins("r", load(5, disk=2, remote=1))
    log.scheduled("r", 320, 64, 400)
    assert not said
    clock.now += 0.25
    log.load_ended("r", complete=True)
    log.scheduled("r", 0, 384, 400)
    assert said == [
        "request r: hit 320 of 400 tokens (128 from memory, 128 from disk, 64 from the remote store) in 250 ms"
    ]


def test_a_load_that_failed_is_no_hit(said: list[str]) -> None:
    """The request is computed."""
    log = RequestLog(CHUNK_TOKENS, 1, Clock())
    log.load_begins("r", load(2))
    log.scheduled("r", 128, 0, 200)
    log.load_ended("r", complete=False)
    log.scheduled("r", 0, 0, 200)
    assert said == ["request r: the load of 128 of 200 tokens failed after 0 ms, they will be computed"]


def test_a_miss_is_told_once(said: list[str]) -> None:
    """Also if the request is preempted and scheduled again; a later request with the same name is another one."""
    log = RequestLog(CHUNK_TOKENS, 1, Clock())
    log.scheduled("r", 0, 0, 200)
    log.scheduled("r", 0, 0, 200)
    log.finished("r")
    log.scheduled("r", 0, 128, 200)
    assert said == ["request r: hit 0 of 200 tokens", "request r: hit 0 of 200 tokens beyond the 128 on the device"]


@pytest.mark.parametrize("late", [False, True])
def test_stores_are_told_once_after_the_last(said: list[str], late: bool) -> None:
    """Whichever comes last: the end of the request, or of its last store. A chunk that failed is not counted."""
    log = RequestLog(CHUNK_TOKENS, 1, Clock())
    log.store_begins("r", 3)
    log.store_ended("r", 3, 2)
    log.store_begins("r", 1)
    log.ends("r", 270)
    if late:
        log.finished("r")
        assert not said
    log.store_ended("r", 1, 1)
    if not late:
        assert not said
        log.finished("r")
    assert said == ["request r: stored 192 of 270 tokens"]


def test_chunks_of_several_groups_are_the_same_tokens(said: list[str]) -> None:
    """Counted once."""
    log = RequestLog(CHUNK_TOKENS, 2, Clock())
    log.store_begins("r", 4)
    log.store_ended("r", 4, 4)
    log.ends("r", 130)
    log.finished("r")
    assert said == ["request r: stored 128 of 130 tokens"]


def test_nothing_is_kept_of_what_ended(said: list[str]) -> None:
    """Nor of what a reset made nobody's: vLLM completes it no more."""
    log = RequestLog(CHUNK_TOKENS, 1, Clock())
    log.scheduled("a", 0, 0, 10)
    log.ends("a", 10)
    log.finished("a")  # nothing to store
    log.store_begins("b", 1)
    log.load_begins("c", load(1))
    log.reset()
    log.store_ended("b", 1, 1)
    log.load_ended("c", complete=True)
    log.ends("b", 10)
    log.finished("b")
    assert said == ["request a: hit 0 of 10 tokens"]
    assert not any((log._loads, log._stores, log._told, log._tokens))
