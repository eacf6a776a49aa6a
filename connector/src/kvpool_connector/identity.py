"""What a stored block depends on beyond its tokens, as a canonical document and its digest.

vLLM's block hash covers tokens, LoRA, multimodal inputs and salt. It says nothing about the model, its weights, dtypes,
RoPE, layout or parallel sizes; blocks that differ in one of them must never meet. The document holds all of them, its
digest is part of every key, and the first writer leaves the document beside the data so that a mismatch can be explained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIGEST_HEX = 32
_WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth")
_HEAD_BYTES = 1 << 20
_SAMPLE_BYTES = 4096
_SAMPLES = 64


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


def weights_fingerprint(folder: Path) -> str:
    """A digest that changes when the weights in a folder change.

    Covers every weight file's name, size, first MiB (which holds the header of safetensors and GGUF with all tensor
    names, types and shapes) and 64 evenly spread samples of 4 KiB. Reading all of a large model would take minutes at every
    start; a change of single values between samples, with all sizes kept, is not seen. Name a revision to be exact.

    Raises:
        FileNotFoundError: the folder has no weight files.
    """
    files = sorted(file for pattern in _WEIGHT_FILES for file in folder.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no weight files ({', '.join(_WEIGHT_FILES)}) in {folder}")
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            total.update(stream.read(_HEAD_BYTES))
            for number in range(_SAMPLES if size > _HEAD_BYTES else 0):
                stream.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                total.update(stream.read(_SAMPLE_BYTES))
    return f"sha256:{total.hexdigest()[:DIGEST_HEX]}"
