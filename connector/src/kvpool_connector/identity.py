"""What a stored block depends on beyond its tokens, as a canonical document and its digest.

vLLM's block hash covers tokens, LoRA, multimodal inputs and salt. It says nothing about the model, its weights, dtypes,
RoPE, layout or parallel sizes; blocks that differ in one of them must never meet. The document holds all of them, its
digest is part of every key, and the first writer leaves the document beside the data so that a mismatch can be explained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST_HEX = 32


def canonical(document: Mapping[str, Any]) -> bytes:
    """The document as bytes that two processes agree on: JSON, sorted keys, no spaces, ASCII.

    Raises:
        TypeError: a value that JSON does not know; facts must be turned into text where they are gathered.
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest(document: Mapping[str, Any]) -> str:
    """The first 128 bits of the document's SHA-256, in hexadecimal."""
    return hashlib.sha256(canonical(document)).hexdigest()[:DIGEST_HEX]


def document_name(identity: str) -> bytes:
    """The key under which the first writer stores the document."""
    return f"kvpool:identity:{identity}".encode()
