"""The paced engine's pattern: each word belongs to one token of one prompt, layer and rank."""

from __future__ import annotations

import numpy as np

from testkit.paced.pattern import KvMemory, Pages, Share, Words, mix, prefix_hashes

BLOCK = 4
LAYERS = 2
BLOCKS = 8
TOKEN_WORDS = 2


def pages(rank: int = 0, window: int | None = None) -> Pages:
    """Two layers, one after the other."""
    salt = mix(np.arange(LAYERS * TOKEN_WORDS, dtype=np.uint64).reshape(LAYERS, TOKEN_WORDS) + np.uint64(100 * rank))
    return Pages(
        block_tokens=BLOCK,
        base=np.array([0, BLOCKS * BLOCK * TOKEN_WORDS]),
        block_stride=np.full(LAYERS, BLOCK * TOKEN_WORDS),
        token_words=np.full(LAYERS, TOKEN_WORDS),
        places=np.tile(np.arange(TOKEN_WORDS), (LAYERS, 1)),
        salt=salt,
        window=window,
    )


def memory(**changes: int) -> KvMemory:
    """An empty one."""
    return KvMemory(np.zeros(LAYERS * BLOCKS * BLOCK * TOKEN_WORDS, np.uint64), [pages(**changes)])


def share(hashes: Words, computed: int, blocks: list[int]) -> Share:
    """A request's part of a pass."""
    return Share("request", computed, hashes, (np.array(blocks),))


def test_prefix() -> None:
    """A hash depends on the token, its position and all tokens before it, and may be continued."""
    tokens = np.array([5, 6, 5, 6, 7])
    whole = prefix_hashes(tokens)
    assert len(set(whole.tolist())) == len(tokens)
    assert (prefix_hashes(tokens[3:], 3, int(whole[2])) == whole[3:]).all()
    assert whole[4] != prefix_hashes(np.array([6, 5, 5, 6, 7]))[4]


def test_right() -> None:
    """What a pass wrote is right for the next one."""
    kv, hashes = memory(), prefix_hashes(np.arange(10))
    kv.write([share(hashes[:9], 0, [3, 1, 6])])
    assert kv.check(1, [share(hashes, 9, [3, 1, 6])]) == (9, 0, [])


def test_wrong() -> None:
    """Another prompt, swapped blocks, another rank and a torn block are noticed."""
    kv, hashes = memory(), prefix_hashes(np.arange(9))
    kv.write([share(hashes, 0, [3, 1, 6])])
    assert kv.check(1, [share(prefix_hashes(np.arange(1, 10)), 8, [3, 1, 6])])[1] == 8
    assert kv.check(1, [share(hashes, 8, [1, 3, 6])])[1] == 8
    assert KvMemory(kv.words, [pages(rank=1)]).check(1, [share(hashes, 8, [3, 1, 6])])[1] == 8
    kv.words[kv.groups[0].words(np.array([3, 1]), np.array([5]))[1, 0, 1]] = 0
    checked, wrong, faults = kv.check(7, [share(hashes, 8, [3, 1, 6])])
    assert (checked, wrong) == (8, 1)
    (fault,) = faults
    assert (fault.pass_number, fault.layer, fault.position, fault.block, fault.seen) == (7, 1, 5, 1, 0)


def test_window() -> None:
    """A layer with a window reads no further back."""
    kv, hashes = memory(window=4), prefix_hashes(np.arange(9))
    kv.write([share(hashes[:8], 0, [3, 1])])
    assert kv.check(1, [share(hashes, 8, [0, 1, 6])]) == (3, 0, [])


def test_turns() -> None:
    """With every third position a turn, three turns read all of them once."""
    kv, hashes = memory(), prefix_hashes(np.arange(9))
    turns = [Share("request", 8, hashes, (np.array([0, 1, 2]),), 3, turn) for turn in range(3)]
    assert [kv.check(0, [each])[0] for each in turns] == [3, 3, 2]
