"""vLLM's command line, as far as injection needs it: finding a flag in lists of words, changing its value, adding one.

vLLM's parser takes ``--a-b v``, ``--a_b v``, ``--a-b=v`` and for structured values ``--a-b.key v``; of two it takes the last
(``vllm/utils/argparse_utils.py``, 0.32). argparse also takes beginnings of a flag's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvpool_operator.injection.outcome import refuse_long

TRANSFER = "--kv-transfer-config"
HASH_ALGORITHM = "--prefix-caching-hash-algo"
NO_CACHING = "--no-enable-prefix-caching"
CACHING = "--enable-prefix-caching"
OFFLOADING = "--kv-offloading-size"
TENSOR_PARALLEL = "--tensor-parallel-size"
CUMEM = "--enable-cumem-allocator"
_SHORT = {"-tp": TENSOR_PARALLEL}
_LEAST = {TRANSFER: len("--kv-t"), HASH_ALGORITHM: len("--prefix-caching-h"), OFFLOADING: len("--kv-offloading-s")}
"""How much of a name makes it unmistakable."""


@dataclass(frozen=True)
class Flag:
    """One occurrence.

    Attributes:
        start, end: the words it takes, end excluded.
        keys: for ``--flag.a.b``: the path ("a", "b").
        value: None for a flag without one.
    """

    start: int
    end: int
    keys: tuple[str, ...]
    value: str | None


def find(words: Sequence[str], name: str) -> list[Flag]:
    """Every occurrence of a flag, in order."""
    found = []
    for place, word in enumerate(words):
        head, equals, value = word.partition("=")
        key, *path = head.split(".")
        if not _is(key, name):
            continue
        if equals:
            found.append(Flag(place, place + 1, tuple(path), value))
        elif place + 1 < len(words) and not words[place + 1].startswith("--"):
            found.append(Flag(place, place + 2, tuple(path), words[place + 1]))
        else:
            found.append(Flag(place, place + 1, tuple(path), None))
    return found


def _is(key: str, name: str) -> bool:
    key = _SHORT.get(key, key).replace("_", "-")
    return key == name or (name.startswith(key) and len(key) >= _LEAST.get(name, len(name)))


def last(words: Sequence[str], name: str) -> str | None:
    """The value that counts; None where the flag is absent."""
    found = find(words, name)
    return found[-1].value if found else None


def has(words: Sequence[str], name: str) -> bool:
    return bool(find(words, name))


def without(words: Sequence[str], name: str) -> list[str]:
    """The words without any occurrence of the flag."""
    gone = {place for flag in find(words, name) for place in range(flag.start, flag.end)}
    return [word for place, word in enumerate(words) if place not in gone]


def structured(words: Sequence[str], name: str) -> dict[str, Any] | None:
    """The value of a flag that takes JSON, from whichever form; None where it is absent.

    Raises:
        ValueError: it is not a JSON object.
        RecursionError: it is nested too deeply.
        Skip: it is too long to be read.
    """
    found = find(words, name)
    if not found:
        return None
    dotted: dict[str, Any] = {}
    for flag in found:
        for word in words[flag.start : flag.end]:
            refuse_long(word, name, "shorten it")
        if flag.keys:
            _put(dotted, flag.keys, flag.value)
    if dotted:
        return dotted  # vLLM appends these behind the rest, so they count
    value = json.loads(found[-1].value or "")
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _put(target: dict[str, Any], keys: tuple[str, ...], text: str | None) -> None:
    *parents, leaf = keys
    for parent in parents:
        inner = target.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{parent} is given twice")
        target = inner
    try:
        target[leaf] = json.loads(text or "")
    except ValueError:
        target[leaf] = text
