"""A thread for calls that may block without a limit, so that whoever needs their result can give up waiting."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from kvpool_connector import threads

T = TypeVar("T")

_CALL_BYTES = 16 << 20


def rows_of_call(row_bytes: int, rows: int) -> int:
    """Return how many rows of an arena a call shall fill that may be given up, and so how many are set aside for it: some
    16 MiB, but not more than an eighth of the arena, and at least one."""
    return max(1, min(_CALL_BYTES // row_bytes, rows // 8))


class Busy(TimeoutError):
    """A call that was given up has not returned yet."""


class Call(Generic[T]):
    """One that runs, or has returned."""

    def __init__(self, function: Callable[[], T], idle: threading.Event) -> None:
        self._function, self._idle = function, idle
        self.began = time.monotonic()
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._lock = threading.Lock()  # guards the next two
        self._returned = False
        self._after: list[Callable[[], object]] = []

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def run(self) -> None:
        """On the thread for calls."""
        try:
            self._results.append(self._function())
        except BaseException as error:
            self._errors.append(error)
        with self._lock:
            self._returned, after = True, self._after
        for what in after:  # before another call may begin
            what()
        self._idle.set()

    def ends(self, deadline: float) -> bool:
        """Wait for the call's end until the deadline, and return whether it came."""
        return self._idle.wait(max(deadline - time.monotonic(), 0))

    def result(self, deadline: float) -> T:
        """The function's, or what it raised. Asked for before the next call begins.

        Raises:
            TimeoutError: no result by the deadline. The function may still run.
        """
        if not self.ends(deadline):
            raise TimeoutError
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def then(self, what: Callable[[], object]) -> None:
        """Do something when the call has returned: at once if it has, else on its thread. It must not raise."""
        with self._lock:
            if not self._returned:
                self._after.append(what)
                return
        what()


class Caller:
    """One call at a time. All methods belong to one thread; the calls run on another one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._last: Call[Any] | None = None

    @property
    def busy(self) -> bool:
        """A call runs, perhaps one that was given up, and may use all that it was given."""
        return not self._idle.is_set()

    @property
    def running(self) -> Call[Any] | None:
        """The call that runs, if one does."""
        return self._last if self.busy else None

    def begin(self, function: Callable[[], T]) -> Call[T]:
        """Start a call.

        Raises:
            Busy: an earlier call was given up and still runs.
        """
        if self.busy:
            raise Busy
        if self._tasks is None:
            self._tasks = queue.SimpleQueue()
            threads.start(self._name, functools.partial(_serve, self._tasks))
        self._idle.clear()
        call = self._last = Call(function, self._idle)
        self._tasks.put(call.run)
        return call

    def close(self) -> None:
        """End the thread once its call has returned. A later call starts a new one, but not before."""
        if self._tasks is not None:
            self._tasks.put(None)
            self._tasks = None


def _serve(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
