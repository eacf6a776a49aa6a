"""A GPU's streams, events and copies on host memory, at a GPU's pace.

Stands in for the CUDA driver, because the machines that run the tests have no GPU. Every stream has
a thread that works its queue in order: forward passes that last, copies that take the link's time,
events and waits. Streams run side by side, so work that lacks a fence really overtakes other work.

It is as unhelpful as CUDA's rules allow. A batch of copies moves half of its pieces, in random
order, when it begins and the others when its time is over. What a copy into device memory will
fill is spoilt when it begins. Lists of addresses are read when the copy runs.

It cannot show how fast anything is on a GPU, nor whether a driver takes these arguments.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, ClassVar

import torch

Work = Callable[[], object]

SPOILT_BYTES = 64
"""Bytes at either end of a piece that are overwritten before it is copied into device memory."""


class Mark:
    """A place in a stream: it is reached when all that was queued before it has ended."""

    def __init__(self) -> None:
        self.reached_at = 0.0
        self._reached = threading.Event()

    def reach(self) -> None:
        """Let all continue that wait for this place."""
        self.reached_at = time.monotonic()
        self._reached.set()

    def wait(self) -> None:
        """Return when the place is reached."""
        self._reached.wait()

    @property
    def reached(self) -> bool:
        """Return whether the place is reached."""
        return self._reached.is_set()


class Stream:
    """Queued work, done in order by a thread of its own. Called like ``torch.cuda.Stream``."""

    live: ClassVar[set[Stream]] = set()
    """Streams whose thread runs."""

    def __init__(self, device: object = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("cpu")
        self._queue: SimpleQueue[tuple[Work, Mark] | None] = SimpleQueue()
        self._last = Mark()
        self._last.reach()
        self._thread = threading.Thread(target=self._run, name="paced-stream", daemon=True)
        self._thread.start()
        self.live.add(self)

    def enqueue(self, work: Work) -> Mark:
        """Do the work behind everything that is queued, and return the place behind it."""
        mark = Mark()
        self._last = mark
        self._queue.put((work, mark))
        return mark

    def record_event(self, event: Event | None = None) -> Event:
        """Record the event, or a new one, behind what is queued."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Put what is queued from now on behind the event as it was recorded last."""
        mark = event.mark
        if mark is not None:
            self.enqueue(mark.wait)

    def wait_stream(self, stream: Stream) -> None:
        """Put what is queued from now on behind all that the other stream holds."""
        self.enqueue(stream._last.wait)

    def synchronize(self) -> None:
        """Wait for all that is queued."""
        self._last.wait()

    def query(self) -> bool:
        """Return whether all that was queued has ended."""
        return self._last.reached

    def end(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()
        self.live.discard(self)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, mark = item
            try:
                work()
            except Exception as error:
                current().broken.append(f"{type(error).__name__}: {error}")
            finally:
                mark.reach()


class Event:
    """A place in a stream that can be recorded again. Called like ``torch.cuda.Event``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.mark: Mark | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Take the place behind what the stream holds now."""
        self.mark = (stream or current().current_stream()).enqueue(lambda: None)

    def wait(self, stream: Stream | None = None) -> None:
        """Make the stream wait for this event."""
        (stream or current().current_stream()).wait_event(self)

    def synchronize(self) -> None:
        """Wait until the place is reached; an event that was never recorded is."""
        if self.mark is not None:
            self.mark.wait()

    def query(self) -> bool:
        """Return whether the place is reached."""
        return self.mark is None or self.mark.reached

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds between this event and a later one. Both must be reached."""
        assert self.mark is not None
        assert end.mark is not None
        assert self.mark.reached
        assert end.mark.reached
        return (end.mark.reached_at - self.mark.reached_at) * 1e3


class Link:
    """One direction of the link to host memory, which all streams share."""

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._latency_s = latency_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def reserve(self, nbytes: int) -> float:
        """Return the time at which a copy that begins now, behind all others, has ended."""
        with self._lock:
            began = max(time.monotonic(), self._free_at)
            self._free_at = began + self._latency_s + nbytes / self.bytes_per_s
            return self._free_at


@dataclasses.dataclass(frozen=True)
class Range:
    """Bytes from begin to end."""

    begin: int
    end: int

    def holds(self, address: int, size: int) -> bool:
        """Return whether all of these bytes are within."""
        return self.begin <= address and address + size <= self.end


Piece = tuple[int, int, int]
"""Source address, target address and bytes of a copy."""


class Gpu:
    """The device of this process and its driver."""

    def __init__(self, link_bytes_per_s: float, link_latency_s: float) -> None:
        self.compute = Stream()
        self.memory: list[Range] = []
        """Device memory."""
        self.broken: list[str] = []
        """Work that raised, and copies that no driver would take."""
        self.batches = 0
        """Batches of copies so far."""
        self.links = {into: Link(link_bytes_per_s, link_latency_s) for into in (True, False)}
        """The link by direction: True is into device memory."""
        self._registered: dict[int, Range] = {}
        self._random = random.Random(0)  # noqa: S311 - an order, not a secret
        self._local = threading.local()

    def current_stream(self, device: object = None) -> Stream:
        """Return the calling thread's stream."""
        stream: Stream = getattr(self._local, "stream", self.compute)
        return stream

    @contextlib.contextmanager
    def use(self, stream: Stream | None) -> Iterator[None]:
        """Make the stream the calling thread's, like ``torch.cuda.stream``."""
        before = self.current_stream()
        self._local.stream = stream or before
        try:
            yield
        finally:
            self._local.stream = before

    def register(self, address: int, size: int) -> bool:
        """Pin host memory."""
        self._registered[address] = Range(address, address + size)
        return True

    def unregister(self, address: int) -> None:
        """Release pinned host memory.

        Raises:
            KeyError: it is not pinned.
        """
        del self._registered[address]

    def copy_batch(self, sources: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor) -> None:
        """Queue copies on the calling thread's stream."""
        self.batches += 1
        lists = [weakref.ref(each) for each in (sources, targets, sizes)]
        self.current_stream().enqueue(lambda: self._copy(lists))

    def _copy(self, lists: list[weakref.ref[torch.Tensor]]) -> None:
        """Work of a stream: copy half of the pieces now and the others when the link is done."""
        tensors = [each() for each in lists]
        assert all(each is not None for each in tensors), "the lists of addresses are gone before the copy ran"
        pieces: list[Piece] = list(zip(*(each.tolist() for each in tensors if each is not None), strict=True))
        if not pieces:
            return
        for source, target, size in pieces:
            self._check(source, target, size)
        into = self._on_device(pieces[0][1], pieces[0][2])
        done_at = self.links[into].reserve(sum(size for _, _, size in pieces))
        pieces = self._random.sample(pieces, len(pieces))
        if into:
            for _, target, size in pieces:
                spoilt = min(SPOILT_BYTES, size)
                ctypes.memset(target, 0xEE, spoilt)
                ctypes.memset(target + size - spoilt, 0xEE, spoilt)
        half = len(pieces) // 2
        _move(pieces[:half])
        sleep_until(done_at)
        _move(pieces[half:])

    def _check(self, source: int, target: int, size: int) -> None:
        ends = [self._on_device(end, size) for end in (source, target)]
        assert sorted(ends) == [False, True], "a copy needs one end in device memory, all of it"
        host = source if ends[1] else target
        met = [each for each in self._registered.values() if host < each.end and each.begin < host + size]
        assert not met or met[0].holds(host, size), "a copy spans two registrations, or leaves one"

    def _on_device(self, address: int, size: int) -> bool:
        return any(memory.holds(address, size) for memory in self.memory)


def _move(pieces: list[Piece]) -> None:
    for source, target, size in pieces:
        ctypes.memmove(target, source, size)


def sleep_until(when: float) -> None:
    """Sleep until the monotonic clock shows this time."""
    while (left := when - time.monotonic()) > 0:
        time.sleep(left)


_current: list[Gpu] = []


def current() -> Gpu:
    """Return the device of this process.

    Raises:
        IndexError: none is installed.
    """
    return _current[-1]


def install(gpu: Gpu) -> None:
    """Put the device where vLLM's runner and the connector's ``cuda.py`` look for CUDA's."""
    from vllm import _custom_ops
    from vllm.v1.kv_offload.cpu import host_register

    _current.append(gpu)
    for name, value in {
        "Stream": Stream, "Event": Event, "stream": lambda stream: current().use(stream),
        "current_stream": lambda device=None: current().current_stream(device),
    }.items():  # fmt: skip
        setattr(torch.cuda, name, value)
    for module, name, value in (
        (_custom_ops, "swap_blocks_batch", _swap_blocks_batch),
        (host_register, "host_register", lambda address, size: current().register(address, size)),
        (host_register, "host_unregister", lambda address: current().unregister(address)),
        (torch, "Event", Event),
    ):
        setattr(module, name, value)


def _swap_blocks_batch(sources: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor, **_: Any) -> None:
    """Take the place of ``vllm._custom_ops.swap_blocks_batch``."""
    current().copy_batch(sources, targets, sizes)


def uninstall(gpu: Gpu) -> None:
    """End the device's streams. CUDA's names stay replaced; another device may be installed."""
    for stream in list(Stream.live):
        stream.end()
    _current.remove(gpu)
