"""What the steps need from the place they are played on: two engines that share a store."""

from __future__ import annotations

from typing import Literal, Protocol

from testkit.host import Dtype

EngineName = Literal["A", "B"]
ENGINES: tuple[EngineName, ...] = ("A", "B")
BLOCK_TOKENS = 32
"""Tokens of vLLM's KV block: the smallest number that its CPU kernels like."""

ENGINE_ARGUMENTS = [
    "--max-model-len", "8192", "--block-size", str(BLOCK_TOKENS), "--enforce-eager", "--enable-prompt-tokens-details",
]  # fmt: skip
"""Arguments of both engines, on every stage. Eager: compilation would take longer than the demo."""


class Stage(Protocol):
    """Two engines, A and B, serving the same model."""

    model: str
    """The name under which they serve it."""
    dtype: Dtype
    """The number type that they compute in."""

    def url(self, engine: EngineName) -> str:
        """Return where an engine listens now."""

    def restart_a(self) -> None:
        """End engine A and wait until it serves again, with empty memory."""

    def parts(self) -> int:
        """Return the number of parts that the store holds."""

    def kill_store(self) -> None:
        """End the store at once, with all that it holds. Called beside requests, from another thread."""

    def return_store(self) -> None:
        """Wait until the store runs again, empty."""

    def look_further(self) -> str:
        """Return what a person may type next."""
