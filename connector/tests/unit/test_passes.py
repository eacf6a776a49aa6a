"""How fast an engine computes, from launches and ends as the schedulers of vLLM produce them."""

from __future__ import annotations

import pytest

from kvpool_connector.scheduler.passes import KEPT_PASSES, MOST_RUNNING, Passes

STEP_S, RATE = 0.012, 19_000.0


def seconds(tokens: int) -> float:
    """How long the emulated device takes for a pass."""
    return STEP_S + tokens / RATE


class Device:
    """An engine's device as a clock: passes run one after the other, each from its launch or the end of the last one."""

    def __init__(self) -> None:
        self.passes = Passes()
        self.now = 0.0
        self._free = 0.0
        self._running: list[tuple[int, float]] = []

    def launch(self, tokens: int) -> None:
        number = self.passes.launch(tokens, self.now)
        self._free = max(self._free, self.now) + seconds(tokens)
        self._running.append((number, self._free))

    def end(self) -> None:
        """Wait for the oldest pass and report its end."""
        number, at = self._running.pop(0)
        self.now = max(self.now, at)
        self.passes.end(number, self.now)


@pytest.fixture
def device() -> Device:
    return Device()


def synchronous(device: Device, sizes: list[int]) -> None:
    for tokens in sizes:
        device.launch(tokens)
        device.end()


def ahead(device: Device, sizes: list[int], depth: int = 2) -> None:
    """The scheduler launches ``depth`` passes before it waits for the first one, as asynchronous scheduling and pipelines do."""
    for number, tokens in enumerate(sizes):
        device.launch(tokens)
        if number >= depth - 1:
            device.end()
    while device._running:
        device.end()


MIXED = [3000, 1, 1, 2048, 700, 1, 3, 8192, 2, 130] * 3


@pytest.mark.parametrize("sizes", [[3000] * 6 + [1] * 4, MIXED], ids=["prompts", "mixed batches"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_rates(device: Device, sizes: list[int], depth: int) -> None:
    """However far ahead the scheduler is, the estimates are those of the device."""
    ahead(device, sizes, depth)
    assert device.passes.prefill_rate == pytest.approx(RATE, rel=0.2)
    assert device.passes.step_s == pytest.approx(STEP_S, rel=0.2)


def test_pauses(device: Device) -> None:
    """An engine that was idle between its requests is as fast as one that was not."""
    for _ in range(5):
        synchronous(device, [3000, 1, 1])
        device.now += 100.0
    assert device.passes.prefill_rate == pytest.approx(RATE, rel=0.05)
    assert device.passes.step_s == pytest.approx(STEP_S, rel=0.05)


def test_prefill_before_any_decode(device: Device) -> None:
    """The step's own cost is not known yet and counts as that of the tokens."""
    synchronous(device, [3000])
    assert device.passes.prefill_rate == pytest.approx(3000 / seconds(3000))
    assert device.passes.step_s is None


def test_one_slow_pass(device: Device) -> None:
    """It is not how fast the engine is, and neither is one that was fast."""
    synchronous(device, [3000] * 5 + [1] * 3)
    before = device.passes.prefill_rate
    for pause in (10.0, -0.1):
        number = device.passes.launch(3000, device.now)
        device.now += seconds(3000) + pause
        device.passes.end(number, device.now)
    assert device.passes.prefill_rate == pytest.approx(before)


def test_another_speed(device: Device) -> None:
    """Half of the passes that are kept show it."""
    synchronous(device, [3000] * KEPT_PASSES + [1] * 3)
    for _ in range(KEPT_PASSES // 2 + 1):
        number = device.passes.launch(3000, device.now)
        device.now += 1.0
        device.passes.end(number, device.now)
    assert device.passes.prefill_rate == pytest.approx(3000 / (1.0 - STEP_S), rel=0.05)


def test_an_end_that_was_not_reported(device: Device) -> None:
    """The next end says only that both passes are over."""
    synchronous(device, [3000, 1])
    before = (device.passes.prefill_rate, device.passes.step_s)
    device.passes.launch(3000, device.now)
    last = device.passes.launch(3000, device.now)
    device.now += 0.001
    device.passes.end(last, device.now)
    device.passes.end(last, device.now)
    assert (device.passes.prefill_rate, device.passes.step_s) == before


def test_a_step_without_tokens(device: Device) -> None:
    assert device.passes.launch(0, 1.0) == 0
    assert device.passes.launch(1, 1.0) == 1


def test_ends_that_are_never_reported(device: Device) -> None:
    """Where every rank runs without the cache, launches do not pile up, and later ends count again."""
    for _ in range(10 * MOST_RUNNING):
        device.passes.launch(1, device.now)
    assert len(device.passes._running) == MOST_RUNNING
    last = device.passes.launch(1, device.now)
    device.passes.end(last, device.now)
    synchronous(device, [3000, 1])
    assert device.passes.step_s == pytest.approx(STEP_S, rel=0.05)
