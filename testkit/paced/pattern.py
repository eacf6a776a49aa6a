"""What the emulated forward pass writes into KV memory, and how it is checked.

Each token of a request has a hash of itself and of all tokens before it. From it, the layer and the
rank follow the words that belong into the token's slot; so a block of another request, of another
place in the prompt, of another layer or rank is told from the right one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
WORD_BYTES = 8


def mix(values: Words) -> Words:
    """Return a hash of each value. Source: splitmix64's finalizer, Steele, Lea and Flood 2014."""
    with np.errstate(over="ignore"):
        mixed = values + _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def prefix_hashes(tokens: Numbers, first: int = 0, before: int = 0) -> Words:
    """Return a hash for each token that depends on it, its position and all tokens before it.

    Args:
        first: position of the first token.
        before: hash of the token before the first one; 0 at the beginning of a prompt.
    """
    positions = np.arange(first, first + len(tokens), dtype=np.uint64)
    with np.errstate(over="ignore"):
        return np.cumsum(mix(mix(positions) ^ tokens.astype(np.uint64)), dtype=np.uint64) + np.uint64(before)


@dataclasses.dataclass(frozen=True)
class Pages:
    """Where the tokens of a KV group lie in KV memory, which is counted in words of 8 bytes.

    Word ``p`` of token ``t`` of block ``b`` in a layer is at
    ``base[layer] + b * block_stride[layer] + t * token_words[layer] + p``.
    """

    block_tokens: int
    base: Numbers
    """First word of each layer's first block, shape (layers,)."""
    block_stride: Numbers
    """Words between a block of a layer and the next one, shape (layers,)."""
    token_words: Numbers
    """Words of a token in a layer, shape (layers,)."""
    places: Numbers
    """Words of a token that are stamped, shape (layers, stamps)."""
    salt: Words
    """Number of each stamp of each layer and rank, shape (layers, stamps)."""
    window: int | None
    """Tokens that a layer looks back, itself included; None for all."""

    def words(self, blocks: Numbers, positions: Numbers) -> Numbers:
        """Return where the stamps are, shape (layers, positions, stamps).

        Args:
            blocks: block ids of the request, in the order of its tokens.
            positions: of tokens in the request.
        """
        block = blocks[positions // self.block_tokens]
        token = positions % self.block_tokens
        starts = self.base[:, None] + block * self.block_stride[:, None] + token * self.token_words[:, None]
        words: Numbers = starts[:, :, None] + self.places[:, None, :]
        return words

    def stamps(self, hashes: Words) -> Words:
        """Return the stamps of tokens with these hashes, shape (layers, tokens, stamps)."""
        return mix(hashes[None, :, None] ^ self.salt[:, None, :])

    def first_read(self, position: int) -> int:
        """Return the first position that a token at this one attends to."""
        return 0 if self.window is None else max(0, position - self.window + 1)


@dataclasses.dataclass(frozen=True)
class Share:
    """One request's part of a forward pass."""

    request: str
    computed: int
    """Tokens before the ones of this pass: the kernel reads their KV."""
    hashes: Words
    """Of all tokens up to the last one of this pass."""
    blocks: tuple[Numbers, ...]
    """Block ids by KV group."""
    every: int = 1
    """Of the positions that are read, check those that are ``turn`` modulo this number."""
    turn: int = 0


@dataclasses.dataclass(frozen=True)
class Fault:
    """A word that the kernel read and that was not what the pass before had to leave there."""

    pass_number: int
    request: str
    group: int
    layer: int
    position: int
    block: int
    expected: int
    seen: int

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"pass {self.pass_number}, request {self.request}: position {self.position} in block {self.block} "
            f"of group {self.group}, layer {self.layer}: {self.seen:#018x} instead of {self.expected:#018x}"
        )


class KvMemory:
    """KV memory of one rank."""

    FAULTS_OF_A_PASS = 8
    """Faults of a pass that are described; the others are counted."""

    def __init__(self, words: Words, groups: Sequence[Pages]) -> None:
        self.words = words
        self.groups = groups

    def check(self, number: int, shares: Sequence[Share]) -> tuple[int, int, list[Fault]]:
        """Read all that a pass over these shares reads.

        Returns:
            positions that were checked, positions that were wrong, and some of the faults.
        """
        checked = wrong = 0
        faults: list[Fault] = []
        for share in shares:
            for group, pages in enumerate(self.groups):
                positions = np.arange(pages.first_read(share.computed), share.computed)
                positions = positions[positions % share.every == share.turn % share.every]
                if not len(positions):
                    continue
                seen = np.take(self.words, pages.words(share.blocks[group], positions))
                expected = pages.stamps(share.hashes[positions])
                differs = seen != expected
                checked += len(positions)
                if differs.any():
                    wrong += int(differs.any(axis=(0, 2)).sum())
                    for layer, at, stamp in np.argwhere(differs)[: self.FAULTS_OF_A_PASS - len(faults)].tolist():
                        position = int(positions[at])
                        block = int(share.blocks[group][position // pages.block_tokens])
                        values = int(expected[layer, at, stamp]), int(seen[layer, at, stamp])
                        faults.append(Fault(number, share.request, group, layer, position, block, *values))
        return checked, wrong, faults

    def write(self, shares: Sequence[Share]) -> None:
        """Write what a pass over these shares computes."""
        for share in shares:
            positions = np.arange(share.computed, len(share.hashes))
            for group, pages in enumerate(self.groups):
                self.words[pages.words(share.blocks[group], positions)] = pages.stamps(share.hashes[positions])

    def zero(self, blocks: Numbers) -> None:
        """Zero all pages of these blocks."""
        for pages in self.groups:
            for base, stride, token_words in zip(pages.base, pages.block_stride, pages.token_words, strict=True):
                for block in blocks:
                    start = int(base + block * stride)
                    self.words[start : start + int(token_words) * pages.block_tokens] = 0
