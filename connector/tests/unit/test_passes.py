"""How fast an engine computes, from launches and ends as the schedulers of vLLM produce them."""

from __future__ import annotations

import pytest

from kvpool_connector.scheduler.passes import KEPT_PASSES, MOST_RUNNING, Passes
from testkit.paced.profiles import PROFILES

STEP_S, RATE = 0.012, 19_000.0
PACES = [
    pytest.param(profile.step_s, float(profile.prefill_tokens_per_s), id=name)
    for name, profile in PROFILES.items()
    if name in {"llama-8b", "llama-70b-tp8", "fast"}
]
"""Of each pace that a profile of the paced engine has."""
NEAR = (0.8, 1.25)
"""How far an estimate may be from the device's rate."""


def seconds(tokens: int) -> float:
    """How long the emulated device takes for a pass."""
    return STEP_S + tokens / RATE


class Device:
    """An engine's device as a clock: passes run one after the other, each from its launch or the end of the last one."""

    def __init__(self, step_s: float = STEP_S, rate: float = RATE, decode_s: float | None = None) -> None:
        """Args:
        decode_s: what a decoded token costs; None: as much as one of a prompt.
        """
        self.passes = Passes()
        self.now = 0.0
        self._step_s, self._rate = step_s, rate
        self._decode_s = 1 / rate if decode_s is None else decode_s
        self._free = 0.0
        self._running: list[tuple[int, float]] = []

    @property
    def nearness(self) -> float:
        """Return the estimate ÷ the true rate."""
        assert self.passes.prefill_rate is not None
        return self.passes.prefill_rate / self._rate

    def launch(self, prefill_tokens: int, decode_tokens: int = 0) -> None:
        """Launch a pass."""
        number = self.passes.launch(prefill_tokens, decode_tokens, self.now)
        seconds = self._step_s + prefill_tokens / self._rate + decode_tokens * self._decode_s
        self._free = max(self._free, self.now) + seconds
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


def ahead(device: Device, sizes: list[int], depth: int = 2, decodes: int = 0) -> None:
    """The scheduler launches ``depth`` passes before it waits for the first one, as asynchronous
    scheduling and pipelines do. So many tokens are decoded in each pass."""
    for number, tokens in enumerate(sizes):
        device.launch(tokens, decodes)
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
    assert device.passes.prefill_rate == pytest.approx(RATE, rel=0.05)
    assert device.passes.step_s == pytest.approx(STEP_S, rel=0.2)


@pytest.mark.parametrize("decode_s", [None, 0.0], ids=["dear", "free"])
@pytest.mark.parametrize("decodes", [1, 130, 256, 512])
@pytest.mark.parametrize(("step_s", "rate"), PACES)
def test_many_decodes(step_s: float, rate: float, decodes: int, decode_s: float | None) -> None:
    """A pass that only decodes is no prefill however many requests decode in it, and what they cost
    beside a prompt is not charged to the prompt."""
    device = Device(step_s, rate, decode_s)
    for _ in range(3):
        ahead(device, [0] * KEPT_PASSES + MIXED[:10] + [0] * KEPT_PASSES, decodes=decodes)
        assert NEAR[0] <= device.nearness <= NEAR[1]
    step_s += decodes * (1 / rate if decode_s is None else decode_s)
    assert device.passes.step_s == pytest.approx(step_s, rel=0.05)


@pytest.mark.parametrize(("step_s", "rate"), PACES)
def test_decodes_that_come_and_go(step_s: float, rate: float) -> None:
    """Each prefill is charged with a step of as many decodes as it held."""
    device = Device(step_s, rate)
    for decodes in (1, 512, 1, 130, 1):
        ahead(device, [2048] * 4 + [0] * KEPT_PASSES, decodes=decodes)
        assert NEAR[0] <= device.nearness <= NEAR[1]


@pytest.mark.parametrize("tokens", [130, 300])
@pytest.mark.parametrize(("step_s", "rate"), PACES)
def test_short_prompts(step_s: float, rate: float, tokens: int) -> None:
    """As long as there are no others, they bound the rate, which is better than not to know any. A
    single long one says more than all of them."""
    device = Device(step_s, rate)
    synchronous(device, [tokens, 1, 1] * KEPT_PASSES)
    assert 0.4 <= device.nearness <= 1.01
    synchronous(device, [2048] + [tokens, 1, 1] * KEPT_PASSES)
    assert NEAR[0] <= device.nearness <= NEAR[1]


def test_a_first_step_that_was_slow(device: Device) -> None:
    """An engine may warm up in it, and never again decode for one request alone."""
    number = device.passes.launch(0, 1, device.now)
    device.now += 2.0
    device.passes.end(number, device.now)
    ahead(device, [2048] * 4 + [0] * KEPT_PASSES, decodes=100)
    assert NEAR[0] <= device.nearness <= NEAR[1]


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
        number = device.passes.launch(3000, 0, device.now)
        device.now += seconds(3000) + pause
        device.passes.end(number, device.now)
    assert device.passes.prefill_rate == pytest.approx(before)


def test_another_speed(device: Device) -> None:
    """Half of the passes that are kept show it."""
    synchronous(device, [3000] * KEPT_PASSES + [1] * 3)
    for _ in range(KEPT_PASSES // 2 + 1):
        number = device.passes.launch(3000, 0, device.now)
        device.now += 1.0
        device.passes.end(number, device.now)
    assert device.passes.prefill_rate == pytest.approx(3000 / (1.0 - STEP_S), rel=0.05)


def test_an_end_that_was_not_reported(device: Device) -> None:
    """The next end says only that both passes are over."""
    synchronous(device, [3000, 1])
    before = (device.passes.prefill_rate, device.passes.step_s)
    device.passes.launch(3000, 0, device.now)
    last = device.passes.launch(3000, 0, device.now)
    device.now += 0.001
    device.passes.end(last, device.now)
    device.passes.end(last, device.now)
    assert (device.passes.prefill_rate, device.passes.step_s) == before


def test_a_step_without_tokens(device: Device) -> None:
    assert device.passes.launch(0, 0, 1.0) == 0
    assert device.passes.launch(0, 1, 1.0) == 1


def test_ends_that_are_never_reported(device: Device) -> None:
    """Where every rank runs without the cache, launches do not pile up, and later ends count again."""
    for _ in range(10 * MOST_RUNNING):
        device.passes.launch(0, 1, device.now)
    assert len(device.passes._running) == MOST_RUNNING
    last = device.passes.launch(0, 1, device.now)
    device.passes.end(last, device.now)
    synchronous(device, [3000, 1])
    assert device.passes.step_s == pytest.approx(STEP_S, rel=0.05)
