"""Questions to something that may never answer: a nameserver, a network file system.

Each is asked on a thread, one for each key at a time, whoever asks. Who waits in vain goes on with the
last answer of this process.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from kvpool_connector import threads
from kvpool_connector.log import get_logger

logger = get_logger(__name__)

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
_TELL_EVERY_S = 10.0


class Unanswered(TimeoutError):
    """No answer by the deadline, and none before."""


class _Question(Generic[Value]):
    """A call that runs, or has returned."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.values: list[Value] = []
        self.error: OSError | None = None


class Questions(Generic[Key, Value]):
    """Asks, and keeps the last answers. Every method may be called from any thread."""

    def __init__(self, name: str, ask: Callable[[Key], Value], *, keeps: Callable[[OSError], bool]) -> None:
        """Args:
        name: of the threads.
        ask: may take for ever, and raises OSError where there is no answer.
        keeps: whether the last answer is still good after such an error.
        """
        self._name, self._ask, self._keeps = name, ask, keeps
        self._lock = threading.Lock()  # guards all below
        self._asked: dict[Key, _Question[Value]] = {}
        self._last: dict[Key, Value] = {}
        self._tell_at = 0.0

    def answer(self, key: Key, deadline: float, in_vain: str) -> Value:
        """Return the answer.

        Args:
            deadline: absolute ``time.monotonic()``.
            in_vain: what to say where it does not come in time.

        Raises:
            Unanswered: see there.
            OSError: there is none.
        """
        question, last = self._question(key)
        left_s = deadline - time.monotonic()
        # Where there is something to go on with, half of the time is for that.
        if not question.answered.wait(max(left_s / 2 if last else left_s, 0)):
            if not last:
                raise Unanswered(in_vain)
            self._tell(in_vain)
            return last[0]
        if question.error is None:
            return question.values[0]
        if last and self._keeps(question.error):
            return last[0]
        raise question.error

    def _tell(self, in_vain: str) -> None:
        with self._lock:
            now = time.monotonic()
            tells = now >= self._tell_at
            if tells:
                self._tell_at = now + _TELL_EVERY_S
        if tells:
            logger.warning("%s; the last answer is used", in_vain)

    def _question(self, key: Key) -> tuple[_Question[Value], list[Value]]:
        """Return the question that is open about this key, or a new one, and the last answer if there is one."""
        with self._lock:
            question = self._asked.get(key)
            if question is None:
                question = self._asked[key] = _Question()
                threads.start(self._name, functools.partial(self._run, question, key))
            return question, [self._last[key]] if key in self._last else []

    def _run(self, question: _Question[Value], key: Key) -> None:
        """Run on the thread."""
        try:
            question.values.append(self._ask(key))
        except OSError as error:
            question.error = error
        except Exception as error:
            question.error = OSError(f"{key!r}: {error}")
        with self._lock:
            del self._asked[key]
            if question.values:
                self._last[key] = question.values[0]
        question.answered.set()
