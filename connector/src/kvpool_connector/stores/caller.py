"""A thread for calls that may block without a limit, so that whoever needs their result can give up waiting."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from kvpool_connector import threads

T = TypeVar("T")


class Busy(TimeoutError):
    """A call that was given up has not returned yet."""


class Caller:
    """One call at a time. `call`, `busy` and `close` belong to one thread; the calls run on another one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._idle = threading.Event()
        self._idle.set()

    @property
    def busy(self) -> bool:
        """A call that was given up still runs, and may use all that it was given."""
        return not self._idle.is_set()

    def call(self, function: Callable[[], T], deadline: float) -> T:
        """The function's result, or what it raised.

        Raises:
            Busy: an earlier call was given up and still runs.
            TimeoutError: no result by the deadline. The function may still run.
        """
        if self.busy:
            raise Busy
        results: list[T] = []
        errors: list[BaseException] = []

        def task() -> None:
            try:
                results.append(function())
            except BaseException as error:
                errors.append(error)
            finally:
                self._idle.set()

        if self._tasks is None:
            self._tasks = queue.SimpleQueue()
            threads.start(self._name, functools.partial(_serve, self._tasks))
        self._idle.clear()
        self._tasks.put(task)
        if not self._idle.wait(max(deadline - time.monotonic(), 0)):
            raise TimeoutError
        if errors:
            raise errors[0]
        return results[0]

    def close(self) -> None:
        """End the thread once its call has returned. A later call starts a new one, but not before."""
        if self._tasks is not None:
            self._tasks.put(None)
            self._tasks = None


def _serve(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
