"""When a text is right: the rule that the demo, the engine tests and the tests in Pods share (docs/texts.md).

A text behind a hit must be the text of the same vLLM without kvpool, in the same number type, with the same split of the
prompt between cached and computed: what vLLM alone says behind its own prefix cache. A text computed whole is the case in
which nothing is cached. In float32, one prompt has one text wherever it is split, so there the texts of a prompt are compared
with each other and no further engine is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from testkit.engine import MODEL_NAME
from testkit.engine_process import EngineProcess
from testkit.host import Dtype, one_arithmetic
from testkit.http_client import Answer, chat_tokens, complete, reset_own_cache

Text = TypeVar("Text")


def sibling(prompt: Sequence[int], split: int) -> list[int]:
    """Return a prompt of the same length whose first ``split`` tokens are those of ``prompt``, and whose next one is not.

    vLLM names a block by all tokens up to its end, so nothing behind the split is shared, and the computation that leaves the
    first tokens in the prefix cache has the shape of the prompt's own.

    Raises:
        ValueError: every token of the prompt is the same, or the split leaves nothing to compute.
    """
    if not 0 < split < len(prompt):
        raise ValueError(f"a split of {split} tokens leaves nothing to cache or to compute of {len(prompt)}")
    other = next((token for token in prompt if token != prompt[split]), None)
    if other is None:
        raise ValueError("all tokens of the prompt are the same")
    return [*prompt[:split], other, *prompt[split + 1 :]]


def text_alone(
    generate: Callable[[Sequence[int]], tuple[Text, int]],
    forget: Callable[[], object],
    prompt: Sequence[int],
    split: int,
) -> Text:
    """Return what vLLM alone says to a prompt of which it has ``split`` tokens in its own prefix cache.

    Args:
        generate: gives token ids to vLLM without a connector; returns its text and how many tokens its cache held.
        forget: empties that cache.
        split: 0, or a multiple of vLLM's block size.

    Raises:
        RuntimeError: vLLM cached another number of tokens, so its text says nothing about this split.
    """
    forget()
    if split:
        generate(sibling(prompt, split))
    text, cached = generate(prompt)
    if cached != split:
        raise RuntimeError(f"vLLM alone had {cached} tokens of a prompt in its prefix cache, not {split}")
    return text


class Reference(Protocol):
    """Something that knows the right text of a chat."""

    def text(self, prompt: str, split: int) -> str:
        """Return the text to a user's message of which ``split`` prompt tokens come from a cache."""


class Alone:
    """vLLM without kvpool as a process of this machine: started on entry, ended on exit."""

    def __init__(self, folder: Path, dtype: Dtype, arguments: Sequence[str]) -> None:
        """Args:
        folder: for the log.
        arguments: those of the engines whose texts are judged.
        """
        self._engine = EngineProcess("alone", folder, config=None, dtype=dtype, arguments=arguments)

    def __enter__(self) -> Self:
        self._engine.start()
        try:
            self._engine.serving()
        except BaseException:
            self._engine.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.end()

    def text(self, prompt: str, split: int) -> str:
        """See :class:`Reference`."""
        url = self._engine.url
        tokens = chat_tokens(url, MODEL_NAME, prompt)

        def generate(ids: Sequence[int]) -> tuple[str, int]:
            answer = complete(url, MODEL_NAME, ids)
            return answer.text, answer.cached_tokens

        return text_alone(generate, lambda: reset_own_cache(url), tokens, split)


@dataclasses.dataclass(frozen=True)
class Sample:
    """An answer to be judged."""

    label: str
    """Where it comes from, for the message about a fault."""
    prompt: str
    answer: Answer


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which rule was used, and what it found."""

    rule: str
    faults: tuple[str, ...]


def judge(
    samples: Sequence[Sample],
    dtype: Dtype,
    reference: Callable[[], AbstractContextManager[Reference]],
    asked: Callable[[int, int], None] = lambda done, of: None,
) -> Verdict:
    """Judge the texts of engines that ran in this type.

    Args:
        reference: starts vLLM alone; only called where the type needs it.
        asked: is told after each text of vLLM alone how many of how many there are.
    """
    if one_arithmetic(dtype):
        first: dict[str, str] = {}
        for sample in samples:
            first.setdefault(sample.prompt, sample.answer.text)
        right = {_question(sample): first[sample.prompt] for sample in samples}
        return Verdict(f"one text per prompt, cached or computed ({dtype})", _faults(samples, right))
    questions = [*dict.fromkeys(map(_question, samples))]
    right = {}
    with reference() as alone:
        for question in questions:
            right[question] = alone.text(*question)
            asked(len(right), len(questions))
    return Verdict(f"vLLM alone behind its own prefix cache, same split ({dtype})", _faults(samples, right))


def _question(sample: Sample) -> tuple[str, int]:
    """Return what decides about the text: the prompt, and how much of it came from a cache."""
    return sample.prompt, sample.answer.cached_tokens


def _faults(samples: Sequence[Sample], right: Mapping[tuple[str, int], str]) -> tuple[str, ...]:
    """Name each sample whose text is empty or another one than the right one."""
    return tuple(
        f"{sample.label}: with {sample.answer.cached_tokens} of {sample.answer.prompt_tokens} tokens cached the text is "
        f"{sample.answer.text!r}, not {right[_question(sample)]!r}"
        for sample in samples
        if not sample.answer.text or sample.answer.text != right[_question(sample)]
    )
