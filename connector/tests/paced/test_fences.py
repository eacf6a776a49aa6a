"""The checker notices what it is there for: each fence of the copies is broken once, on purpose."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from kvpool_connector.worker.device.cuda import CudaDevice
from kvpool_connector.worker.mover import Mover
from testkit.paced import device
from testkit.paced.engine import PacedEngine, tokens
from testkit.servers import wait_until

DOCUMENT = 3000
DOCUMENTS = [tokens(number, DOCUMENT) for number in range(100, 104)]


def stored_and_loaded(paced: PacedEngine, concurrency: int = 2) -> int:
    """Compute the documents, lose them, load them. Return how many positions were read wrong."""
    paced.generate(DOCUMENTS, concurrency=concurrency)
    paced.forget()
    answers = paced.generate(DOCUMENTS, concurrency=concurrency)
    assert sum(answer.cached_tokens for answer in answers) > 0, "nothing was loaded"
    return sum(report.wrong for report in paced.reports(forget=True))


def test_unbroken(paced: PacedEngine) -> None:
    """The control: the same requests with the connector as it is."""
    assert stored_and_loaded(paced) == 0


def test_store_without_fence(paced: PacedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not wait for the pass that computes its blocks."""
    copy_out = CudaDevice.copy_out

    def at_once(self: CudaDevice, chunks: Any, rows: Any, fence: object) -> None:
        copy_out(self, chunks, rows, torch.cuda.Event())

    monkeypatch.setattr(CudaDevice, "copy_out", at_once)
    assert stored_and_loaded(paced) > 0


@pytest.fixture
def late_copies() -> Iterator[list[threading.Thread]]:
    """Threads of copies that go on after they were reported; they are waited for at the end."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join()


def test_load_reported_early(
    paced: PacedEngine, monkeypatch: pytest.MonkeyPatch, late_copies: list[threading.Thread]
) -> None:
    """A load that is reported before its copy has ended, which is after the next pass began: the
    link is slow."""
    monkeypatch.setattr(device.current().links[True], "bytes_per_s", 20e6)
    copy_in = CudaDevice.copy_in

    def in_background(self: CudaDevice, rows: Any, chunks: Any, fence: object) -> None:
        thread = threading.Thread(target=copy_in, args=(self, rows, chunks, fence))
        late_copies.append(thread)
        thread.start()

    monkeypatch.setattr(CudaDevice, "copy_in", in_background)
    assert stored_and_loaded(paced) > 0


def test_rows_swapped(paced: PacedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that brings the parts of the request that was loaded before."""
    copy_in = CudaDevice.copy_in
    before: list[Any] = []

    def swapped(self: CudaDevice, rows: Sequence[Any], chunks: Any, fence: object) -> None:
        taken = [*before, *rows][: len(rows)] if before else rows
        before[:] = rows
        copy_in(self, taken, chunks, fence)

    monkeypatch.setattr(CudaDevice, "copy_in", swapped)
    assert stored_and_loaded(paced) > 0


def test_torn_load(paced: PacedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load of which the last pieces are left out."""
    move = device._move

    def torn(pieces: list[device.Piece]) -> None:
        move(pieces[: len(pieces) * 2 // 3])

    paced.generate(DOCUMENTS, concurrency=2)
    paced.forget()
    monkeypatch.setattr(device, "_move", torn)
    paced.generate(DOCUMENTS, concurrency=2)
    assert sum(report.wrong for report in paced.reports(forget=True)) > 0


def test_load_without_fence(paced: PacedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load into blocks that a pass is still writing: those of a request that stopped, which vLLM
    schedules once more before it knows."""
    assert wrong_after_stop(paced, monkeypatch) == 0
    copy_in = CudaDevice.copy_in

    def at_once(self: CudaDevice, rows: Any, chunks: Any, fence: object) -> None:
        copy_in(self, rows, chunks, torch.cuda.Event())

    monkeypatch.setattr(CudaDevice, "copy_in", at_once)
    assert wrong_after_stop(paced, monkeypatch) > 0


def wrong_after_stop(paced: PacedEngine, monkeypatch: pytest.MonkeyPatch) -> int:
    """Load a document that needs nearly all blocks as soon as another request stops.

    Passes are slow and the link is fast, so that a load without its fence ends within a pass. vLLM
    0.32 frees the blocks of such a request a step later (``defer_block_free``), so that the fence is
    the second of two guards; the first one is off here.

    Returns:
        positions that were wrong when they were read.
    """
    large = tokens(200, paced.profile.device_tokens - 40)
    short = tokens(201, 900)
    paced.generate([large], max_tokens=1)
    (answer,) = paced.generate([short], max_tokens=12)
    paced.forget()
    paced.reports(forget=True)
    stop = answer.tokens[8]
    core = paced.llm.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    with monkeypatch.context() as patch:
        patch.setattr(core.scheduler, "defer_block_free", False)
        patch.setattr(runner.paced, "profile", dataclasses.replace(paced.profile, step_s=0.4))
        patch.setattr(device.current().links[True], "bytes_per_s", 1e12)
        answers = paced.generate([short, large], concurrency=2, max_tokens=20, stop_token_ids=[stop])
    assert len(answers[0].tokens) <= 9
    assert answers[1].cached_tokens > 0, "nothing was loaded"
    return sum(report.wrong for report in paced.reports(forget=True))


def preempted(paced: PacedEngine, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let two requests outgrow KV memory while their blocks are copied over a slow link.

    Returns:
        positions that were wrong when both were loaded afterwards.
    """
    documents = [tokens(310, 4143), tokens(311, 3985)]  # the second one ends behind a whole chunk
    paced.forget()
    paced.reports(forget=True)
    before = paced.preempted
    with monkeypatch.context() as patch:
        patch.setattr(device.current().links[False], "bytes_per_s", 2e6)
        paced.generate(documents, concurrency=2, max_tokens=200)
    assert paced.preempted > before
    paced.forget()
    answers = paced.generate(documents)
    chunk = int(paced.figure("kvpool:chunk_tokens") or 0)
    whole = [(len(document) - 1) // chunk * chunk for document in documents]
    assert [answer.cached_tokens for answer in answers] == whole
    return sum(report.wrong for report in paced.reports(forget=True))


def test_blocks_are_given_away_after_their_store(paced: PacedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM has the connector wait for the copies of a request that gives up its blocks."""
    assert preempted(paced, monkeypatch) == 0


def test_blocks_that_are_given_away_early(paced: PacedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connector that does not wait stores what the other request computed in these blocks.

    The copies are held until that one has gone on for 150 passes, which takes nine blocks or more.
    They are quick then: once it ends, vLLM computes what the first one lost in the same blocks.
    """
    link = device.current().links[False]
    runner = paced.llm.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    passes: list[Any] = runner.paced.passes
    copy_out = CudaDevice.copy_out
    until = [0]

    def hold(self: Mover, job_ids: set[int]) -> None:
        until[0] = until[0] or len(passes) + 150
        link.bytes_per_s = 1e12

    def copy_when_free(self: CudaDevice, chunks: Any, rows: Any, fence: object) -> None:
        wait_until("the other request has gone on", lambda: len(passes) >= until[0])
        copy_out(self, chunks, rows, fence)

    monkeypatch.setattr(Mover, "wait", hold)
    monkeypatch.setattr(CudaDevice, "copy_out", copy_when_free)
    assert preempted(paced, monkeypatch) > 0
