"""Stand-ins for what has no place in a unit test: another thread's answers, a server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from kvpool_connector.stores import Loan, Outcome
from kvpool_connector.stores.base import all_there


class FakePresence:
    """Answers like `Presence`, at once after `flush`, from a set that the test owns."""

    def __init__(self) -> None:
        self.remote: set[bytes] = set()
        self.generation = 1
        self.reachable = True
        self.hung = False
        """Questions stay open."""
        self.closed = False
        self.asked: list[bytes] = []
        """All questions, in order."""
        self.windows: dict[bytes, int | None] = {}
        """The window with which each key was asked about."""
        self.heads: dict[bytes, bool] = {}
        """Whether each key was asked about at the head of a prompt."""
        self.refreshing: list[bytes] = []
        """Keys of a refresh that was not answered yet."""
        self.redials = 0
        self.counted: Counter[str] = Counter()
        self._verdicts: dict[bytes, bool | None] = {}
        self._waiters: dict[bytes, set[str]] = {}
        self._answered: set[str] = set()

    def ask(self, key: bytes, req_id: str, window: int | None = None, at_head: bool = False) -> bool | None:
        if not self.reachable:
            return False
        if self._verdicts.get(key) is not None:
            return self._verdicts[key]
        self._waiters.setdefault(key, set()).add(req_id)
        if key not in self._verdicts:
            self.asked.append(key)
            self._verdicts[key] = None
            self.windows[key], self.heads[key] = window, at_head
        return None

    def take_answers(self) -> set[str]:
        if not self.reachable:
            self._answered = self._answered.union(*self._waiters.values())
        answered, self._answered = self._answered, set()
        return answered

    def believe(self, keys: Sequence[bytes], present: bool) -> None:
        self._verdicts.update(dict.fromkeys(keys, present))

    def flush(self) -> None:
        for key, verdict in self._verdicts.items():
            if verdict is None and not self.hung:
                self._answered |= self._waiters.pop(key, set())
                self._verdicts[key] = self.reachable and key in self.remote

    def doubt(self) -> None:
        self.reachable = False

    def redial(self) -> None:
        self.redials += 1

    def take_counts(self) -> Counter[str]:
        counts, self.counted = self.counted, Counter()
        return counts

    def refresh(self, keys: Sequence[bytes]) -> bool:
        if self.refreshing or not keys:
            return False
        self.refreshing = list(keys)
        return True

    def take_refreshed(self) -> list[tuple[bytes, bool]]:
        keys, self.refreshing = self.refreshing, []
        return [(key, key in self.remote) for key in keys]

    def forget(self) -> None:
        self._verdicts.clear()

    def close(self) -> None:
        self.closed = True

    # ---- what the world does --------------------------------------------------------------------------------

    def lose(self) -> None:
        """The store goes away with all it held."""
        self.reachable = False
        self.remote.clear()

    def come_back(self) -> None:
        """Empty."""
        self.reachable = True
        self.generation += 1

    def expire(self) -> None:
        """Verdicts are believed for a while only."""
        self._verdicts.clear()


class FakeStore:
    """The protocol of `Store` over a dictionary, shared by as many "connections" as a test makes."""

    def __init__(self, data: dict[bytes, bytes]) -> None:
        self.data = data
        self.generation = 1
        self.errors: Counter[str] = Counter()
        self.touched: list[bytes] = []
        """Names that were asked about with ``touch``."""
        self.outcome: Outcome | None = None
        """Instead of answering."""
        self.before: Callable[[str], object] = lambda verb: None
        """Called first, on the calling thread: may wait or raise."""
        self.calls: list[tuple[str, list[bytes]]] = []
        self.threads: set[str] = set()
        self.greeted = threading.Event()
        """A ping was answered: a lane that greets its store is not in the way of what a test sets up next."""
        self.lent: Loan | None = None
        self.closed = False

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        return self._each("exists", keys, lambda i: Outcome.HIT if keys[i] in self.data else Outcome.MISS)

    def exists_all(self, groups: Sequence[Sequence[bytes]], deadline: float, *, touch: bool = False) -> list[Outcome]:
        if touch:
            self.touched += [name for names in groups for name in names]
        return all_there(groups, lambda names: self.exists(names, deadline))

    def get_into(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        def get(i: int) -> Outcome:
            value = self.data.get(keys[i])
            if value is None:
                return Outcome.MISS
            if len(value) != len(buffers[i]):
                return Outcome.CORRUPT
            buffers[i][:] = value
            return Outcome.HIT

        return self._each("get", keys, get)

    def put_from(self, keys: Sequence[bytes], buffers: Sequence[memoryview], deadline: float) -> list[Outcome]:
        def put(i: int) -> Outcome:
            self.data[keys[i]] = bytes(buffers[i])
            return Outcome.HIT

        return self._each("put", keys, put)

    def delete(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        return self._each(
            "delete", keys, lambda i: Outcome.MISS if self.data.pop(keys[i], None) is None else Outcome.HIT
        )

    def ping(self, deadline: float) -> Outcome:
        (outcome,) = self._each("ping", [b""], lambda i: Outcome.HIT)
        self.greeted.set()
        return outcome

    def close(self) -> None:
        self.closed = True

    def called(self, verb: str) -> list[list[bytes]]:
        """The batches of a verb."""
        return [keys for name, keys in list(self.calls) if name == verb]

    def _each(self, verb: str, keys: Sequence[bytes], answer: Callable[[int], Outcome]) -> list[Outcome]:
        self.threads.add(threading.current_thread().name)
        self.calls.append((verb, list(keys)))
        self.before(verb)
        return [self.outcome] * len(keys) if self.outcome is not None else [answer(i) for i in range(len(keys))]
