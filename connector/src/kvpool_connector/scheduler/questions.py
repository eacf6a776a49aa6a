"""Questions to the remote store: which keys of a prompt are asked about in which order, and for how long an answer counts.

vLLM looks up a prompt's keys one after the other, in two ways (`OffloadingConnectorScheduler`'s
`_maximal_prefix_lookup` and `_sliding_window_lookup`): a group of full attention from the prompt's head
until the first key that is absent, a group with a sliding window from the end of what the other groups
have until as many keys in a row are there as its window needs. In that order a `Chain` is asked, a few
keys first and then `GROWTH` times as many, and it ends where vLLM's lookup would: what comes behind is
not asked about, and its keys are unknown.

    Chain      questions of one request about one group: made by the scheduler's thread, asked by the presence thread
    Verdicts   which chain knows a key: bounded, scheduler's thread
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

from kvpool_connector.tiers.keymap import Key

HEAD, GROWTH = 32, 8
"""Keys of a chain's first round, and how many times larger each next one is: a prompt of 4096 keys takes four rounds, in
sum four round trips on the presence thread; one that the store does not know takes one round of 32."""
MOST_VERDICTS = 300_000
"""Keys whose verdicts are kept. Some 300 bytes each."""
SHARD = 1023


class Chain:
    """Questions about keys in the order of vLLM's lookup.

    The scheduler's thread appends keys until it sends the chain; from then on the presence thread owns it until it sets
    ``answers``, once, after which nothing of it changes but the scheduler's own notes.
    """

    __slots__ = (
        "_asked",
        "_found",
        "_run",
        "absent_until",
        "after",
        "answers",
        "gathered",
        "given_up",
        "keys",
        "leading",
        "number",
        "present_until",
        "until",
        "waiters",
        "window",
    )

    def __init__(self, window: int | None = None, after: Sequence[Chain] = ()) -> None:
        """Args:
        window: None for a group of full attention; else so many keys in a row end the lookup.
        after: chains that begin at the head of the same request's prompt: if one of these finds nothing there, the
            request has no hit, and this chain need not be asked.
        """
        self.window, self.after = window, after
        self.number = 0  # among the verdicts
        self.gathered: list[Key] = []  # until it is sent
        self.keys: tuple[Key, ...] = ()  # from then on
        self.leading = 0  # of a chain with answers: so many keys from its first one on are all present
        self.waiters: set[str] = set()  # requests that are to be looked up again when it ended
        self.until = float("inf")  # the batch gets its deadline when it is sent
        self.answers: dict[Key, bool] | None = None
        self.given_up = False
        self.present_until = self.absent_until = 0.0
        self._found: dict[Key, bool] = {}
        self._asked = self._run = 0

    @classmethod
    def told(cls, keys: Sequence[Key], present: bool) -> Chain:
        """Verdicts from elsewhere than a question."""
        chain = cls()
        chain.keys = tuple(keys)
        chain.leading = len(chain.keys) if present else 0
        chain.answers = dict.fromkeys(keys, present)
        return chain

    # ---- the scheduler's thread ----------------------------------------------------------------------------

    def seal(self) -> None:
        """Take no more keys: the chain is sent. Python's garbage collector looks at every item of a list in
        each full collection, and at a tuple of bytes once."""
        self.keys = tuple(self.gathered)
        self.gathered = []

    def pending(self, now: float) -> bool:
        """Whether an answer may still come in time."""
        return self.answers is None and not self.given_up and now < self.until

    def give_up(self, now: float, absent_s: float) -> None:
        """No answer came in time: all keys are taken to be absent for a while, unless it comes meanwhile."""
        self.given_up = True
        self.absent_until = now + absent_s

    def seen(self, now: float, present_s: float, absent_s: float) -> None:
        """The scheduler's thread sees the answers, the first time or again. From the first time on they are believed for so
        long: if that began when they came, a step that lasts longer would make it ask again before it has used them."""
        if not self.present_until:
            self.present_until, self.absent_until = now + present_s, now + absent_s

    def verdict(self, key: Key, now: float) -> bool | None:
        """What is believed of a key that is not pending, or None: it must be asked about (again)."""
        present = False if self.answers is None else self.answers.get(key)
        if present is None or now >= (self.present_until if present else self.absent_until):
            return None
        return present

    # ---- the presence thread -------------------------------------------------------------------------------

    @property
    def futile(self) -> bool:
        """Whether the request has no hit, whatever this chain would find."""
        return any(chain._asked and not chain._found[chain.keys[0]] for chain in self.after)

    def next_round(self) -> tuple[Key, ...]:
        """The keys to ask about now; none at the end."""
        size = HEAD if not self._asked else self._asked * (GROWTH - 1)
        return self.keys[self._asked : self._asked + size]

    def take(self, present: Sequence[bool]) -> bool:
        """Note the answers about the last round's keys. Returns whether there is another round."""
        done = False
        for key, there in zip(self.keys[self._asked : self._asked + len(present)], present, strict=True):
            self._found[key] = there
            self._run = self._run + 1 if there else 0
            done |= not there if self.window is None else self._run >= self.window
        self._asked += len(present)
        return not done and self._asked < len(self.keys)

    def end(self, *, rest: bool | None = None) -> None:
        """Publish what was found. ``rest``: the answer about keys that were not asked about; None: unknown."""
        if rest is not None:
            self._found = dict.fromkeys(self.keys, rest) | self._found
        self.leading = sum(1 for _ in itertools.takewhile(self._found.get, self.keys))
        self.answers = self._found


class Verdicts:
    """Which chain knows a key. The oldest that ended go first; one that is being asked never goes.

    The dicts of keys hold numbers, so that the garbage collector has nothing to do with them: it would
    stop the scheduler's thread for 15 ms over 250 000 keys (measured).

    Attributes:
        shards: by ``hash(key) & SHARD``, the number of a key's chain. Many small dicts, since a large one
            stops for long when it grows, and so would some hundred that grow at the same time.
        chains: by their numbers.
    """

    def __init__(self) -> None:
        self.shards: list[dict[Key, int]] = [{} for _ in range(SHARD + 1)]
        self.chains: dict[int, Chain] = {}
        self._numbers = itertools.count(1)
        self._order: deque[Chain] = deque()
        self._kept = 0

    def __len__(self) -> int:
        return self._kept

    def begin(self, chain: Chain) -> None:
        """Give a chain its number, under which its keys are put into ``shards`` one by one."""
        chain.number = next(self._numbers)
        self.chains[chain.number] = chain

    def sent(self, chain: Chain) -> None:
        """A chain that has begun is going to be asked, and has all its keys."""
        while self._kept > MOST_VERDICTS and self._order[0].answers is not None:
            self._drop(self._order.popleft())
        self._order.append(chain)
        self._kept += len(chain.keys)

    def add(self, chain: Chain) -> None:
        """A chain with its answers."""
        self.begin(chain)
        for key in chain.keys:
            self.shards[hash(key) & SHARD][key] = chain.number
        self.sent(chain)

    def clear(self) -> None:
        """Forget all."""
        self.shards[:] = [{} for _ in range(SHARD + 1)]
        self.chains.clear()
        self._order.clear()
        self._kept = 0

    def _drop(self, chain: Chain) -> None:
        self._kept -= len(chain.keys)
        for key in chain.keys:
            shard = self.shards[hash(key) & SHARD]
            if shard.get(key) == chain.number:
                del shard[key]
        del self.chains[chain.number]
