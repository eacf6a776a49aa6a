"""A disk tier whose file system hangs under a running engine: right texts, bounded first tokens, and the disk is used again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm import RequestOutput, SamplingParams

from connector.tests.engine.harness import Engine, prompt, running
from kvpool_connector.tiers.slab_calls import READ_S
from kvpool_connector.tiers.slots import State
from kvpool_connector.transfer import DISK_SILENT
from testkit.hanging_disk import CAN_MOUNT, HangingDisk
from testkit.patience import PATIENCE_S, promptly
from testkit.servers import wait_until

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(not CAN_MOUNT, reason="takes root and /dev/fuse")]

LOOKUP_S, FETCH_S = 0.5, 5.0
"""What a question and a fetch may take on an engine whose every hit is loaded."""
MORE_S = 0.3
"""What a first token may be late beyond computing the prompt and the fetch that was given up."""


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[tuple[Engine, HangingDisk]]:
    """Every hit on disk is loaded, for up to 5 s. The engine ends while the disk answers."""
    with promptly(PATIENCE_S):  # its control is a process, which must not be started while the disk hangs
        pass
    with HangingDisk() as disk:
        tiers = {"cpu": {"size": "64Mi"}, "disk": {"path": str(disk.path), "size": "64Mi"}}
        with running(str(model), {"tiers": tiers, "admission": "always"}) as started:
            yield started, disk
            disk.go_on()


def only_on_disk(engine: Engine) -> None:
    """Neither vLLM nor memory holds what was written down."""
    engine.settle()
    index = engine.manager.pool.index
    for _, slot in list(index):
        index.drop(slot)
    engine.forget()


def answers(engine: Engine) -> bool:
    """After a step, since reports come with steps."""
    engine.generate(prompt(900, words=3), tokens=1)
    (disk,) = engine.manager.pool.secondaries
    return disk.usable


def test_a_disk_hangs_under_a_running_engine(engine: tuple[Engine, HangingDisk]) -> None:
    """The first request pays for one read that is given up, the next ones for nothing; afterwards blocks come from disk."""
    subject, disk = engine
    began = time.monotonic()
    texts = [subject.generate(prompt(number))[0] for number in (1, 2)]
    cold_s = time.monotonic() - began
    only_on_disk(subject)
    before = subject.mover.outbox.outcomes[DISK_SILENT]
    disk.hang()
    try:
        with promptly(cold_s + READ_S + MORE_S):
            assert subject.generate(prompt(1))[0] == texts[0]
        with promptly(cold_s + MORE_S):
            assert subject.generate(prompt(2))[0] == texts[1]
        with promptly(cold_s + MORE_S):
            subject.generate(prompt(3))
        assert subject.mover.outbox.outcomes[DISK_SILENT] == before + 1
    finally:
        disk.go_on()
    wait_until("the disk answers", lambda: answers(subject))
    only_on_disk(subject)
    text, cached = subject.generate(prompt(2))
    assert text == texts[1]
    assert cached
    assert any(transfer.from_disk for transfer in subject.loads())
    subject.assert_nothing_is_left()


def test_a_reset_while_a_read_hangs(engine: tuple[Engine, HangingDisk]) -> None:
    """vLLM's worker waits for the load on its main thread: for no longer than the read may take. No row is given to others."""
    subject, disk = engine
    wait_until("the disk answers", lambda: answers(subject))
    text, _ = subject.generate(prompt(4))
    only_on_disk(subject)
    core = subject.llm.llm_engine
    disk.hang()
    try:
        core.add_request("hangs", prompt(4), SamplingParams(max_tokens=8, temperature=0))
        end = time.monotonic() + PATIENCE_S
        while not subject.loads():
            core.step()
            assert time.monotonic() < end, "no load began"
        core.engine_core.engine_core.scheduler.connector.reset_cache()  # type: ignore[attr-defined]
        answer: list[int] = []
        with promptly(PATIENCE_S / 2):
            while core.has_unfinished_requests():
                for output in core.step():
                    assert isinstance(output, RequestOutput)
                    answer = list(output.outputs[0].token_ids)
        assert answer == text
    finally:
        disk.go_on()
    wait_until("the disk answers", lambda: answers(subject))
    assert subject.generate(prompt(4))[0] == text
    subject.assert_nothing_is_left()


def test_a_lookup_that_nobody_ends(engine: tuple[Engine, HangingDisk], caplog: pytest.LogCaptureFixture) -> None:
    """A fetch for another request whose end is never heard. It is a stand-in: slots of memory that seem to be filled. The
    watchdog ends the wait after what the fetch of the same blocks may take, and the prompt is computed."""
    subject, disk = engine
    disk.go_on()
    wait_until("the disk answers", lambda: answers(subject))
    subject.forget(tiers=True)
    subject.generate(prompt(901, words=3))  # a step, so that the reset is through
    began = time.monotonic()
    text, _ = subject.generate(prompt(5))
    cold_s = time.monotonic() - began
    subject.settle()
    subject.forget()
    index = subject.manager.pool.index
    slots = [slot for _, slot in index]
    for slot in slots:
        index.set_state(slot, State.FETCHING)
    try:
        with promptly(cold_s + LOOKUP_S + FETCH_S + MORE_S):
            assert subject.generate(prompt(5))[0] == text
    finally:
        for slot in slots:
            index.set_state(slot, State.READY)
    assert caplog.text.count("what can be loaded for it; it is computed") == 1
    subject.forget()
    assert subject.generate(prompt(5))[1] > 0
    subject.assert_nothing_is_left()
