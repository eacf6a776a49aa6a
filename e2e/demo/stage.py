"""What the steps need from the place they are played on: two engines that share a store."""

from __future__ import annotations

from typing import Literal, Protocol

EngineName = Literal["A", "B"]
ENGINES: tuple[EngineName, ...] = ("A", "B")
BLOCK_TOKENS = 32
"""Tokens per KV block: the granularity of hits. 32 is the smallest that vLLM's CPU kernels like; a block of SmolLM2 in
float32 is then 1.5 MB, which is what stores like."""

ENGINE_ARGUMENTS = [
    "--max-model-len", "8192", "--block-size", str(BLOCK_TOKENS), "--enforce-eager", "--enable-prompt-tokens-details",
]  # fmt: skip
"""Arguments of both engines, on every stage. Eager: compilation would take longer than the demo."""


class Stage(Protocol):
    """Two engines, A and B, serving the same model."""

    model: str
    """The name under which they serve it."""

    def url(self, engine: EngineName) -> str:
        """Where an engine listens now."""

    def restart_a(self) -> None:
        """End engine A and wait until it serves again, with empty memory."""

    def parts(self) -> int:
        """Parts that the store holds."""

    def kill_store(self) -> None:
        """End the store at once."""

    def return_store(self) -> None:
        """The store runs again, empty."""

    def look_further(self) -> str:
        """What a person may type next."""
