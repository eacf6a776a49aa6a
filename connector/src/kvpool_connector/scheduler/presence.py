"""Whether the remote store has a key, asked in batches on a thread of its own.

``ask``, ``flush``, ``believe``, ``refresh``, ``doubt``, ``redial``, ``forget``, the ``take_`` methods and the properties run on
the scheduler's thread and never block: a question is given up at its deadline whatever the presence thread does. In which order
keys are asked about, and how far: :mod:`kvpool_connector.scheduler.questions`.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from kvpool_connector.log import get_logger
from kvpool_connector.scheduler.asker import Asker
from kvpool_connector.scheduler.questions import SHARD, Chain, Verdicts
from kvpool_connector.stores import Backoff, Store
from kvpool_connector.tiers.keymap import Key

logger = get_logger(__name__)

PRESENT_S, ABSENT_S = 5.0, 1.0
"""How long an answer is believed: a part that is there rarely goes, one that is absent may come any moment."""
AWAITED_S = 0.02
"""ABSENT_S where parts are on their way: a decode engine asks for what its prefill engine is writing."""
MOST_PENDING = 1_000_000
"""Keys that are being asked about at a time. While there are so many, a question is a miss, and counted."""
LATE, NOT_ASKED = "store answer too late", "store not asked, too many questions"
_TELL_EVERY_S = 10.0


class Presence:
    """Verdicts about keys, over an `Asker`."""

    def __init__(
        self,
        store: Store,
        *,
        names: Callable[[Key], Iterable[bytes]],
        timeout_s: Callable[[int], float],
        patience_s: float,
        greeting: tuple[bytes, memoryview] | None = None,
        absent_s: float = ABSENT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        store: used by the presence thread only.
        names: the names of all ranks' parts of a key; a key is present only if all of them are.
        timeout_s: by number of questions in a batch: after this an unanswered one is a miss for the request that asked.
        patience_s: after this the store is taken for lost. Longer than the time-out: an answer that is merely late is
            still good for the next request, and no reason to close the connection.
        absent_s: how long a key that was absent is taken to be so.
        greeting: a name and a value to store once per connection, unless the name is there: the identity document. It lies where
            the store's client can take it from. Asking for it is also how a quiet store is seen to answer questions, and not
            only PING: a user without rights is allowed that.
        """
        self._clock, self._timeout_s, self._absent_s = clock, timeout_s, absent_s
        self._verdicts = Verdicts()
        self._shards, self._chain_of = self._verdicts.shards, self._verdicts.chains
        self._asking: tuple[str, bytes, Chain] | None = None  # who asked last in this step, about which group
        self._walked: tuple[Key, ...] = ()  # keys that are present and that a request asks for in this order
        self._walked_to = 0  # how many of them it has asked for
        self._chains: dict[tuple[str, bytes], Chain] = {}  # of this step, not sent yet
        self._heads: dict[str, list[Chain]] = {}  # those of them that begin at the head of a prompt
        self._pending = 0
        self._refreshes = False
        self._counts: Counter[str] = Counter()
        self._sent: list[tuple[float, int, list[Chain]]] = []  # a heap of batches by their deadlines
        self._number = itertools.count()
        self._open: Counter[str] = Counter()  # by request: chains that did not end yet
        self._woken: set[str] = set()
        self._tell_at = 0.0
        self._elsewhere = Backoff()
        self.late = 0
        """Questions that were given up: no answer within the deadline. Each is a miss that costs computing."""
        self._asker = Asker(store, names, patience_s, greeting)

    @property
    def generation(self) -> int:
        """Changes when the store was away: what it held before may be gone. 0: never reached."""
        return self._asker.generation

    @property
    def reachable(self) -> bool:
        """The store answered last time."""
        return self._asker.reachable

    # ---- questions -----------------------------------------------------------------------------------------

    def ask(  # noqa: PLR0911 - asked for each key of a prompt: a method for some of the answers costs as much as they do
        self, key: Key, req_id: str, window: int | None = None, at_head: bool = False
    ) -> bool | None:
        """Present, absent, or None: not known yet, the request is named by `take_answers` (bounded by the deadline).

        Args:
            window: for a group with a sliding window: so many keys in a row are all that the request needs.
            at_head: nothing of this request's prompt was found before this key.
        """
        # Before the first contact a question waits like any other. Later the heartbeat finds out
        # when a lost store is back; until then not even what it was known to have can be loaded.
        if not self._asker.reachable and self._asker.tried:
            return False
        # A request asks for the keys of its chain in the order of the chain. Looking each of 250 000
        # up costs four misses of the processor's cache, 3 ms for a prompt of 4096 (measured).
        walked_to = self._walked_to
        if walked_to and walked_to < len(self._walked) and self._walked[walked_to] == key:
            self._walked_to = walked_to + 1
            return True
        shard = self._shards[hash(key) & SHARD]
        number = shard.get(key)
        if number is not None:
            chain = self._chain_of[number]
            now = self._clock()
            answers = chain.answers
            if answers is not None and answers.get(key) and now < chain.present_until:
                if chain.keys[0] == key:
                    self._walk(chain)
                return True  # in short what follows
            if chain.pending(now):
                self._wait(chain, req_id)
                return None
            if answers is not None:
                chain.seen(now, PRESENT_S, self._absent_s)
            elif not chain.given_up:
                self._give_up([chain], now)
            verdict = chain.verdict(key, now)
            if verdict is not None:
                return verdict
        asking = self._asking
        if asking is not None and asking[0] == req_id and asking[1] == key[-4:]:
            chain = asking[2]
        elif self._pending < MOST_PENDING:
            chain = self._begin(req_id, key[-4:], window, at_head)
        else:
            self._counts[NOT_ASKED] += 1
            return False
        chain.gathered.append(key)
        shard[key] = chain.number
        return None

    def _begin(self, req_id: str, group: bytes, window: int | None, at_head: bool) -> Chain:
        """The chain of a request's questions about one group in this step."""
        chain = self._chains.get((req_id, group))
        if chain is None:
            heads = self._heads.setdefault(req_id, [])
            self._chains[req_id, group] = chain = Chain(window, () if window is None else tuple(heads))
            self._verdicts.begin(chain)
            if window is None and at_head:
                heads.append(chain)
            self._wait(chain, req_id)
        self._asking = (req_id, group, chain)
        return chain

    def _walk(self, chain: Chain) -> None:
        """The first key of a chain was asked for and is present: expect the others of it that are, in this step."""
        self._walked = chain.keys[: chain.leading]
        self._walked_to = 1

    def _end_walk(self) -> None:
        """What was found of that chain counts no longer, or was for this step only."""
        self._walked = ()
        self._walked_to = 0

    def _wait(self, chain: Chain, req_id: str) -> None:
        if req_id not in chain.waiters:
            chain.waiters.add(req_id)
            self._open[req_id] += 1

    def flush(self) -> None:
        """End of a step: send its questions as one batch, with one deadline."""
        self._end_walk()
        if not self._chains:
            return
        chains = list(self._chains.values())
        for chain in chains:
            chain.seal()
        questions = sum(len(chain.keys) for chain in chains)
        self._pending += questions
        until = self._clock() + self._timeout_s(questions)
        for chain in chains:
            chain.until = until
            self._verdicts.sent(chain)
        heapq.heappush(self._sent, (until, next(self._number), chains))
        self._asker.ask(chains)
        self._drop_unsent()

    def _drop_unsent(self) -> None:
        self._asking = None
        self._chains.clear()
        self._heads.clear()

    def take_answers(self) -> set[str]:
        """Requests that should be looked up again: all that they asked for was answered since the last call, or its deadline
        passed, or the store is not there any more."""
        now = self._clock()
        while not self._asker.ended.empty():
            chain = self._asker.ended.get()
            chain.seen(now, PRESENT_S, self._absent_s)
            self._pending -= len(chain.keys)
            self._wake([chain])
        while self._sent and self._sent[0][0] <= now:
            self._give_up(heapq.heappop(self._sent)[2], now)
        if not self._asker.reachable and self._asker.tried:
            for _, _, chains in self._sent:
                self._wake(chains)
        woken, self._woken = self._woken, set()
        return woken

    def _wake(self, chains: Iterable[Chain]) -> None:
        """These chains keep nobody waiting any more."""
        for chain in chains:
            for req_id in chain.waiters:
                self._open[req_id] -= 1
                if self._open[req_id] <= 0:
                    del self._open[req_id]
                    self._woken.add(req_id)
            chain.waiters.clear()

    def _give_up(self, chains: Sequence[Chain], now: float) -> None:
        """Never silent: what is given up here is computed although the store may have it."""
        late = [chain for chain in chains if chain.answers is None and not chain.given_up]
        for chain in late:
            chain.give_up(now, self._absent_s)
            self.late += len(chain.keys)
            self._counts[LATE] += len(chain.keys)
        self._wake(chains)
        if late and now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            logger.warning(
                "the store did not say in time what it holds (at least %.0f ms); those blocks are computed "
                "(%d given up so far)", self._timeout_s(1) * 1e3, self.late,
            )  # fmt: skip

    def believe(self, keys: Sequence[Key], present: bool) -> None:
        """Take verdicts from elsewhere: parts that were just put, or just could not be read."""
        self._end_walk()
        chain = Chain.told(keys, present)
        chain.seen(self._clock(), PRESENT_S, self._absent_s)
        self._verdicts.add(chain)

    def doubt(self) -> None:
        """A rank waited for the store in vain: until it answers here, no request shall load from it
        or wait for it. Asks it at once."""
        if self._asker.reachable:
            self._asker.doubt()

    def redial(self) -> None:
        """A rank was refused by a server that is not the one to talk to any more: connect anew, at growing intervals."""
        if self._elsewhere.due(self._clock()):
            self._asker.connect_anew()

    def forget(self) -> None:
        """Drop all verdicts. Who waited for one is to ask again."""
        self._end_walk()
        self._drop_unsent()
        for _, _, chains in self._sent:
            for chain in chains:
                chain.waiters.clear()
        self._sent.clear()
        self._open.clear()
        self._verdicts.clear()  # its list of shards and its chains stay the same objects

    # ---- what is there, long after it was put ----------------------------------------------------------------

    def refresh(self, keys: Sequence[Key]) -> bool:
        """Tell the store in the background that these keys are used, and see which of them it lost. False if an earlier
        call runs: nothing is done then."""
        if self._refreshes or not keys:
            return False
        self._refreshes = True
        self._asker.refresh(list(keys))
        return True

    def take_refreshed(self) -> list[tuple[Key, bool]]:
        """Keys of `refresh` and whether the store has them; those about which it did not say are left out."""
        answers: list[tuple[Key, bool]] = []
        while not self._asker.refreshed.empty():
            self._refreshes = False
            answers += self._asker.refreshed.get() or []
        return answers

    def take_counts(self) -> Counter[str]:
        """What happened since the last call, for metrics: questions that were given up, refusals of the server."""
        while not self._asker.counted.empty():
            self._counts += self._asker.counted.get()
        counts, self._counts = self._counts, Counter()
        return counts

    def close(self) -> None:
        """End the thread."""
        self._asker.close()
