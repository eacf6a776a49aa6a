"""Loggers that are seen. vLLM configures only the logger named "vllm" and what is below it."""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """A logger below vLLM's; in a process without vLLM it behaves as any other."""
    return logging.getLogger(f"vllm.{name}")
