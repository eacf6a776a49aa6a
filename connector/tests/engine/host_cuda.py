"""CUDA's streams, events, batched copies and registrations, carried out on host memory. Needs no GPU.

Stands in for the driver, because a GPU is not where these tests run. It is as unhelpful as CUDA's rules allow: nothing runs
before somebody must wait for it, so a missing wait shows as wrong bytes; a batch's copies run one by one in random order;
a source that may be read out of stream order is read at once; lists of addresses are read when the copy runs, and must be
there; a copy that leaves device memory or spans two registrations is an error.

It cannot show how fast anything is, whether a real driver takes these arguments, and what vLLM's compute stream does.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import torch
from vllm import _custom_ops

from kvpool_connector.worker.device import cuda

Work = Callable[[], bool]
"""Does one step; True when it was the last."""

_running = threading.RLock()
"""One step at a time, so that streams that are drained by two threads take turns."""


class Stream:
    """Queued work, in order."""

    def __init__(self, device: object = None) -> None:
        self.queue: deque[Work] = deque()
        self.queued = self.finished = 0

    def enqueue(self, work: Work) -> None:
        """Behind everything that is queued."""
        with _running:
            self.queue.append(work)
            self.queued += 1

    def run(self, call: Callable[[], object]) -> None:
        """Work of a single step: a kernel."""
        self.enqueue(lambda: (call(), True)[1])

    def wait_event(self, event: Event) -> None:
        """What is queued from now on comes after the event as it was recorded last; after nothing if it never was."""
        recorded = event.recorded
        if recorded is not None:
            self.run(lambda: recorded[0].drain(recorded[1]))

    def drain(self, until: int) -> None:
        """Run as much as must be, and no more."""
        while True:
            with _running:
                if self.finished >= until:
                    return
                if self.queue[0]():
                    self.queue.popleft()
                    self.finished += 1

    def synchronize(self) -> None:
        """Wait for all that is queued."""
        self.drain(self.queued)


class Event:
    """A place in a stream."""

    def __init__(self) -> None:
        self.recorded: tuple[Stream, int] | None = None

    def record(self, stream: Stream) -> None:
        """Behind what the stream holds now."""
        self.recorded = (stream, stream.queued)


@dataclasses.dataclass(frozen=True)
class Range:
    """Bytes from begin to end."""

    begin: int
    end: int

    def holds(self, address: int, size: int) -> bool:
        """All of them."""
        return self.begin <= address and address + size <= self.end

    def meets(self, address: int, size: int) -> bool:
        """Any of them."""
        return address < self.end and self.begin < address + size


class HostCuda:
    """The driver."""

    def __init__(self, seed: int = 0) -> None:
        self.compute = Stream()
        self.device_memory: list[Range] = []
        self.registered: dict[int, Range] = {}
        self.refuse_after: int | None = None
        """Registrations that succeed before one does not."""
        self.batches: list[tuple[int, bool]] = []
        """Pieces of a batch, and whether its source may be read out of order."""
        self.on_batch: Callable[[], None] = lambda: None
        """Called when a batch is queued."""
        self._random, self._local = random.Random(seed), threading.local()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """In the place of the real one, for what `kvpool_connector.worker.device.cuda` calls."""
        for name, value in {
            "Stream": Stream, "Event": Event, "stream": self.stream, "current_stream": self.current_stream,
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)
        patch.setattr(cuda, "host_register", self.host_register)
        patch.setattr(cuda, "host_unregister", self.host_unregister)
        patch.setattr(_custom_ops, "swap_blocks_batch", self.swap_blocks_batch)

    def current_stream(self, device: object = None) -> Stream:
        """This thread's."""
        return getattr(self._local, "stream", self.compute)

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Make it this thread's."""
        before, self._local.stream = self.current_stream(), stream
        try:
            yield
        finally:
            self._local.stream = before

    def host_register(self, address: int, size: int) -> bool:
        """False once ``refuse_after`` are registered."""
        if self.refuse_after is not None and len(self.registered) >= self.refuse_after:
            return False
        assert not any(each.meets(address, size) for each in self.registered.values()), "registered twice"
        self.registered[address] = Range(address, address + size)
        return True

    def host_unregister(self, address: int) -> None:
        """KeyError for what is not registered."""
        del self.registered[address]

    def swap_blocks_batch(
        self, sources: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor, is_src_access_order_any: bool = False
    ) -> None:
        """Queue a batch on this thread's stream; the signature is that of ``vllm._custom_ops.swap_blocks_batch``."""
        lists = (sources, targets, sizes)
        for each in lists:
            assert (each.device.type, each.dtype, each.dim()) == ("cpu", torch.int64, 1)
            assert each.is_contiguous()
        assert len(sources) == len(targets) == len(sizes)
        count = len(sizes)
        self.batches.append((count, is_src_access_order_any))
        early = {}
        if is_src_access_order_any:
            early = {n: ctypes.string_at(int(sources[n]), int(sizes[n])) for n in range(count)}
        places, alive = [each.data_ptr() for each in lists], [weakref.ref(each) for each in lists]
        left = list(range(count))
        self._random.shuffle(left)

        def step() -> bool:
            assert all(each() is not None for each in alive), "the lists of addresses are gone before the copy ran"
            if left:
                number = left.pop()
                source, target, size = (ctypes.c_int64.from_address(place + 8 * number).value for place in places)
                self._check(source, target, size)
                ctypes.memmove(target, early.get(number, source), size)
            return not left

        self.current_stream().enqueue(step)
        self.on_batch()

    def _check(self, source: int, target: int, size: int) -> None:
        on_device = [any(memory.holds(end, size) for memory in self.device_memory) for end in (source, target)]
        assert sorted(on_device) == [False, True], "one end lies in device memory, all of it"
        host = source if on_device[1] else target
        met = [each for each in self.registered.values() if each.meets(host, size)]
        assert not met or met[0].holds(host, size), "a copy spans two registrations, or leaves one"
